"""Run an experiment: the one entry of the commands, of torchrun and of notebooks."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs_gpu.errors import SettingError
from pi_incubator import faults, interruption
from pi_incubator.config import ExperimentConfig, explain_settings, load_checked
from pi_incubator.errors import UserError
from pi_incubator.inputs import check_model, with_absolute_paths, with_found_model
from pi_incubator.interruption import Interrupted
from pi_incubator.launcher import is_launched, rank_of_environment
from pi_incubator.run_folder import (
    RunFolder,
    Start,
    check_origin,
    check_resume,
    keep_num_envs,
    place_of,
    recover,
    starting,
    with_own_model,
)

if TYPE_CHECKING:
    from pi_incubator.distributed import Distributed
    from pi_incubator.evaluation.evaluate import Evaluation
    from pi_incubator.hooks.hook import Hook
    from pi_incubator.tracking import Tracker
    from pi_incubator.training.algorithm import Algorithm


RANK_SEED_STEP = 1_000_003
"""Between the seeds of two ranks."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run left."""

    cfg: ExperimentConfig
    """The resolved settings."""
    folder: Path
    """Checkpoints, metrics, curve, video and the exported policy."""
    evaluation: Evaluation | None
    """Of the deterministic policy; `evaluation.summary()["return"]["mean"]` is the return. None on ranks that
    did not write."""


def run(config: str | Path, overrides: Sequence[str] = (), hooks: Sequence[Hook] = ()) -> RunResult:
    """Train what an experiment file describes, then evaluate, film and export the policy.

        import pi_incubator as pi
        result = pi.run("configs/ppo/half_cheetah.yaml", ["env.num_envs=128"])
        print(result.evaluation.summary()["return"]["mean"])

    A run whose folder holds a checkpoint continues from it.

    Args:
        config: the file, YAML or JSON.
        overrides: `section.key=value`, over the file's settings.
        hooks: called after iterations, between the built-in ones; see `pi_incubator.hooks.hook`.

    Raises:
        UserError: a mistake in the settings, before anything is simulated; or the run failed for a reason
            that can be mended.
        Interrupted: SIGTERM or SIGINT came; see `pi_incubator.interruption`.
    """
    began_s = time.perf_counter()
    faults.arm()
    with interruption.handled():
        result = _run_alone(config, overrides, hooks)
    if rank_of_environment() == 0:
        print(f"all done in {timedelta(seconds=round(time.perf_counter() - began_s))}, {_peak_memory()}")
    return result


def _run_alone(config: str | Path, overrides: Sequence[str], hooks: Sequence[Hook]) -> RunResult:
    """The run, in a folder that no other process writes to."""
    rank = rank_of_environment()
    cfg, sources = load_checked(config, [*place_of(Path(config), overrides), *overrides])
    cfg, resumes = with_absolute_paths(cfg), False
    with explain_settings(sources, str(config)):
        _check_launched(cfg)
    with explain_settings(sources, str(config)), _held_by_main(RunFolder(cfg), rank) as folder:
        if rank == 0:  # the other ranks get the settings from this one
            recover(folder)
            cfg = keep_num_envs(with_found_model(cfg), folder)
            resumes = check_resume(cfg, folder)
            if resumes:
                cfg = with_own_model(cfg, folder)
            else:
                check_origin(cfg)
                check_model(cfg)
        return _run(cfg, folder, hooks, resumes)


def _check_launched(cfg: ExperimentConfig) -> None:
    """A training for a launcher is a rank of it.

    Raises:
        SettingError: it is not.
    """
    if cfg.compute.launcher != "none" and not is_launched():
        problem, fix = "only pi-train starts launchers", "use pi-train, or remove it"
        raise SettingError("compute.launcher", cfg.compute.launcher, problem, fix)


def _held_by_main(folder: RunFolder, rank: int) -> AbstractContextManager[RunFolder]:
    """`folder`, locked by rank 0 for all ranks."""
    return folder if rank == 0 else nullcontext(folder)


def _run(cfg: ExperimentConfig, folder: RunFolder, hooks: Sequence[Hook], resumes: bool) -> RunResult:
    """Everything after the checks that do not need torch, whose import takes seconds."""
    from envs_gpu.engine_log import EngineLog
    from pi_incubator.compute import uses_cuda
    from pi_incubator.distributed import join, leave, lost_another_rank

    distributed = join(uses_cuda(cfg))
    engine_log = EngineLog(folder.path if distributed.is_main else None)
    try:
        with engine_log:
            return _run_with_log(cfg, folder, hooks, resumes, distributed)
    except Exception as error:
        if lost_another_rank(error, distributed):
            problem = "another process of this training ended; its own message says why"
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"rank {distributed.rank}: {problem} ({reason})") from None
        raise
    finally:
        leave(distributed)


def _run_with_log(
    cfg: ExperimentConfig,
    folder: RunFolder,
    hooks: Sequence[Hook],
    resumes: bool,
    distributed: Distributed,
) -> RunResult:
    """The run, with MuJoCo's warnings where they belong."""
    cfg, resumes = distributed.broadcast((cfg, resumes))
    cfg, algorithm = _prepare(cfg, folder, distributed)
    try:
        evaluation = _train_and_finish(cfg, folder, algorithm, hooks, resumes)
    finally:
        algorithm.close()
    return RunResult(cfg, folder.path, evaluation)


def _prepare(
    cfg: ExperimentConfig, folder: RunFolder, distributed: Distributed
) -> tuple[ExperimentConfig, Algorithm[Any]]:
    """The resolved settings and the algorithm, with its worlds; nothing has been written yet."""
    import torch

    from pi_incubator.algorithms import algorithm_class
    from pi_incubator.autosize import choose_num_envs
    from pi_incubator.compute import plan_compute
    from pi_incubator.envs import check_policy_reads
    from pi_incubator.memory import check_memory, is_out_of_memory, out_of_memory

    plan = plan_compute(cfg)
    if distributed.is_main:
        cfg, plan = choose_num_envs(cfg, plan)
        check_memory(cfg, plan.device)
    cfg = distributed.broadcast(cfg)
    plan = replace(plan, autocast=distributed.broadcast(plan.autocast))  # ranks on unlike machines agree
    torch.manual_seed(cfg.experiment.seed)
    kind = algorithm_class(cfg)
    try:
        algorithm = kind(cfg, kind.make_env(cfg, plan, folder, distributed), distributed, plan)
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(cfg, plan.device) from None
        raise
    check_policy_reads(cfg, algorithm.policy.groups)
    if distributed.rank:  # the weights are the same everywhere; what is drawn from now on is not
        torch.manual_seed(cfg.experiment.seed + distributed.rank * RANK_SEED_STEP)
    return cfg, algorithm


def _train_and_finish(
    cfg: ExperimentConfig,
    folder: RunFolder,
    algorithm: Algorithm[Any],
    hooks: Sequence[Hook],
    resumes: bool,
) -> Evaluation | None:
    """Train, and on rank 0 judge, film and export the policy."""
    from pi_incubator import checkpoint
    from pi_incubator.finish import finish_run
    from pi_incubator.scene import compare_scene
    from pi_incubator.start_from import start_from
    from pi_incubator.tracking import Tracker, make_tracker

    distributed, origin = algorithm.distributed, None
    lines = [*algorithm.compute.reasons, *algorithm.env.notes]
    if cfg.checkpoint.from_run and not resumes:
        run, groups = cfg.checkpoint.from_run, algorithm.policy.groups
        origin, taken = start_from(run, algorithm.parts(), groups, distributed)
        lines += taken
    if not distributed.is_main:
        _train(cfg, folder, algorithm, hooks, Tracker(), lambda: None)
        return None
    with ExitStack() as stack:
        stack.enter_context(_explain_interruption(cfg, folder, algorithm.num_iterations))
        start = stack.enter_context(starting(cfg, folder, origin))
        cfg = start.cfg
        lines += compare_scene(folder, algorithm.env) if start.resumes else []
        print("\n".join(lines))
        next_iteration = checkpoint.next_iteration(folder)
        with interruption.deferred():  # a tracker that is being made cannot be closed yet
            made = make_tracker(cfg, folder, next_iteration, distributed.world_size)
            tracker = stack.enter_context(made)
        tracker.log_params(algorithm.compute.resolved() | {"resolved.world_size": distributed.world_size})
        _train(cfg, folder, algorithm, hooks, tracker, lambda: _commit(start, folder, algorithm))
        for path in algorithm.conclude(folder):
            tracker.log_artifact(path)
        return finish_run(cfg, folder, algorithm.env, algorithm.policy, tracker)


def _commit(start: Start, folder: RunFolder, algorithm: Algorithm[Any]) -> None:
    """Write what a run begins with."""
    from pi_incubator.scene import write_scene

    start.commit()
    if not start.resumes:
        write_scene(folder, algorithm.env)


@contextmanager
def _explain_interruption(cfg: ExperimentConfig, folder: RunFolder, num_iterations: int) -> Iterator[None]:
    """Let an `Interrupted` say what is saved, and what the command needs to continue from there."""
    try:
        yield
    except Interrupted as stop:
        if saved := folder.saved():
            done = int(saved[-1].name.removeprefix("iter_")) + 1
            stop.state = f"saved after iteration {done:,} of {num_iterations:,}"
        else:
            stop.state = "nothing was saved yet, the same command begins anew"
        if cfg.checkpoint.resume == "never":
            stop.settings = ("checkpoint.resume=auto",)  # or what was saved would be deleted
        raise


def _train(
    cfg: ExperimentConfig,
    folder: RunFolder,
    algorithm: Algorithm[Any],
    hooks: Sequence[Hook],
    tracker: Tracker,
    restored: Callable[[], None],
) -> None:
    """Train with the built-in hooks around the caller's; `restored` is called once nothing can fail any more
    before the first iteration."""
    from pi_incubator.hooks.checkpoint import Checkpoints
    from pi_incubator.hooks.evaluation import EvaluationHook
    from pi_incubator.hooks.guards import Guards
    from pi_incubator.hooks.hook import parts_of_hooks
    from pi_incubator.hooks.logging import Logging
    from pi_incubator.loop import train
    from pi_incubator.memory import is_out_of_memory, out_of_memory

    parts = algorithm.parts() | parts_of_hooks(hooks)
    log_every, save_every = cfg.training.log_every, cfg.checkpoint.save_every
    checkpoints = Checkpoints(cfg, folder, parts, algorithm.distributed)
    everything = [
        Logging(algorithm, tracker, log_every),
        Guards(algorithm, log_every, save_every),
        EvaluationHook(cfg, algorithm, tracker),
        *hooks,
        checkpoints,
    ]
    try:
        train(algorithm, everything, folder, parts, tracker, restored)
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(cfg, algorithm.compute.device) from None
        raise
    finally:
        checkpoints.close()


def _peak_memory() -> str:
    """The most memory that this process has held, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return f"peak memory {peak_bytes / 1e9:.2f} GB"
