"""Gates from a command line: which run a bundle comes from, the table, and the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_incubator.checkpoint_files import Checkpoint, read_newest
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder

if TYPE_CHECKING:
    from envs_gpu.vec_env import VecEnv
    from pi_incubator.deploy.record import Recording
    from pi_incubator.policies.policy import Policy
    from pi_incubator.runtime import Bundle

POLICY_FILE = "policy.safetensors"
FAILED = 1
"""Exit code where a gate failed."""


def run_of(bundle: Path) -> str:
    """The run folder that the bundle at `bundle` lies in, as `pi-export` writes it without `--out`.

    Raises:
        UserError: it lies in none.
    """
    for parent in bundle.absolute().parents:
        if RunFolder(parent).config.is_file():
            return str(parent)
    raise UserError(f"{bundle}: lies in no run's folder; name the run that it was exported from")


def read_checked(path: Path, found: Checkpoint) -> Bundle:
    """The bundle at `path`, whole and of the checkpoint `found`.

    Raises:
        UserError: it is damaged, or of another run or another checkpoint.
    """
    from pi_incubator.runtime import PolicyRuntimeError, read_bundle

    try:
        bundle = read_bundle(path)
    except PolicyRuntimeError as error:
        raise UserError(str(error)) from None
    origin = {"config_sha256": found.config_sha256, "policy_sha256": found.files[POLICY_FILE]}
    for field, sha256 in origin.items():
        if bundle.contract.raw.get(field) != sha256:
            fix = "name its run, or export again"
            raise UserError(f"{path}: {field} is not that of the newest checkpoint of {found.run}; {fix}")
    return bundle


def newest(folder: RunFolder) -> Checkpoint:
    """The newest checkpoint of a run with an undamaged policy, without loading torch."""
    return read_newest(folder, (POLICY_FILE,))[0]


def pass_gates(
    path: Path,
    cfg: ExperimentConfig,
    folder: RunFolder,
    env: VecEnv,
    policy: Policy,
    num_episodes: int,
    found: Checkpoint,
    recording: Recording | None = None,
) -> tuple[int, dict[str, Any]]:
    """Run every gate on the bundle at `path`, print and write down what they say.

    Args:
        path: of the bundle.
        cfg: the run's.
        folder: the run's.
        env: its evaluation worlds.
        policy: its policy.
        num_episodes: over which returns are measured.
        found: the checkpoint that the policy and the bundle are from.
        recording: of the policy in `env`, where there is one already.

    Returns:
        The exit code, and name -> what the gate found out.

    Raises:
        UserError: the bundle cannot be used, or the env brings a simulator of its own.
    """
    from envs_gpu.sim_env import SimEnv
    from pi_incubator.deploy.gates._base import Candidate
    from pi_incubator.deploy.gates._verdict import judge, mark
    from pi_incubator.evaluation.table import print_table

    if not isinstance(env, SimEnv):
        problem = "brings its own physics, and gates simulate in C MuJoCo"
        raise UserError(f"env.name = {cfg.env.name!r}: {problem}; export it without --gates")
    bundle = read_checked(path, found)
    candidate = Candidate(bundle, cfg, folder, env, policy, num_episodes, recording)
    results = judge(candidate)
    mark(path, results)
    shown = ("passed", "value", "limit", "unit")
    entries = {name: result.entry() for name, result in results.items()}
    rows = {name: {key: entry[key] for key in shown} for name, entry in entries.items()}
    print_table(rows, title=f"{path}: gates", first_column="gate")
    failed = [name for name, result in results.items() if not result.passed]
    for name, entry in entries.items():
        if "error" in entry:
            print(f"{name}: {entry['error']}")
    print(f"failed: {', '.join(failed)}; the bundle is marked" if failed else "every gate is passed")
    return (FAILED if failed else 0), entries
