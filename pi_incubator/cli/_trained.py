"""Opening a trained run: the cheap checks first, then its worlds and its policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from envs_gpu.registry import nearest
from pi_incubator.config import ExperimentConfig, check_names, load_with_sources
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder

if TYPE_CHECKING:
    from envs_gpu.vec_env import VecEnv
    from pi_incubator.policies.policy import Policy

DEVICES = ("auto", "cpu", "cuda")


def open_run(
    run: str, device: str = "auto", overrides: Sequence[str] = ()
) -> tuple[ExperimentConfig, RunFolder]:
    """The saved config of the run folder `run`, with `section.key=value` overrides, before torch is imported.

    A run is opened on `device`, whatever it was trained on: a policy from a GPU is judged on a laptop too.

    Raises:
        UserError: it is no run folder, has no checkpoint, or needs what is not installed here.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        known = [path.parent.name for path in folder.path.parent.glob(f"*/{folder.config.name}")]
        guess = nearest(folder.path.name, known)
        hint = f"did you mean {folder.path.with_name(guess)}?" if guess else "name the folder of a run"
        raise UserError(f"{run}: is no run folder (it has no {folder.config.name}); {hint}")
    cfg, sources = load_with_sources(folder.config, [f"compute.device={device}", *overrides])
    check_names(cfg, sources)
    if not folder.saved():
        raise UserError(f"{run}: has no checkpoint yet; train it first")
    return cfg, folder


def load_trained(cfg: ExperimentConfig, folder: RunFolder, num_envs: int) -> tuple[VecEnv, Policy]:
    """Worlds to judge the run in, and its newest policy.

    Raises:
        UserError: no checkpoint is whole, or none fits the config.
    """
    from pi_incubator.algorithms import make_policy
    from pi_incubator.checkpoint import load_policy
    from pi_incubator.compute import plan_compute
    from pi_incubator.envs import evaluation_env

    env = evaluation_env(cfg, num_envs, plan_compute(cfg).device)
    policy = make_policy(cfg, env.spec)
    load_policy(folder, policy)
    return env, policy
