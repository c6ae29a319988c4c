"""The worlds and the policy of a trained run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from pi_incubator.checkpoint_files import Checkpoint
from pi_incubator.config import ExperimentConfig, explain_settings
from pi_incubator.run_folder import RunFolder

if TYPE_CHECKING:
    from envs_gpu.vec_env import VecEnv
    from pi_incubator.policies.policy import Policy

DEVICES = ("auto", "cpu", "cuda")


class Trained(NamedTuple):
    """A trained run, as it was when it was opened."""

    env: VecEnv
    """Worlds to judge the run in."""
    policy: Policy
    checkpoint: Checkpoint
    """That the policy is from; training may have written newer ones since."""


def load_trained(cfg: ExperimentConfig, folder: RunFolder, num_envs: int) -> Trained:
    """Worlds to judge the run in, and its newest policy.

    Raises:
        UserError: no checkpoint is whole, or none fits the config.
    """
    from pi_incubator.algorithms import make_policy
    from pi_incubator.checkpoint import load_policy
    from pi_incubator.compute import plan_compute
    from pi_incubator.envs import evaluation_env
    from pi_incubator.scene import compare_scene

    with explain_settings({}, str(folder.config)):
        env = evaluation_env(cfg, num_envs, plan_compute(cfg).device)
    for line in compare_scene(folder, env):
        print(line, file=sys.stderr)
    policy = make_policy(cfg, env.spec)
    return Trained(env, policy, load_policy(folder, policy))
