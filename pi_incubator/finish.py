"""What follows training: judge the policy, draw its curve, film it and export it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from envs_gpu.vec_env import VecEnv
from pi_incubator import checkpoint, faults
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.artifact import Source, origin_of
from pi_incubator.deploy.bundle import write_file
from pi_incubator.deploy.contract import Origin
from pi_incubator.deploy.graph import MEASURED
from pi_incubator.deploy.pixels import export_pixels
from pi_incubator.deploy.record import record
from pi_incubator.envs import evaluation_env, evaluation_seed
from pi_incubator.errors import UserError
from pi_incubator.evaluation.curve import draw_curve
from pi_incubator.evaluation.evaluate import Evaluation, evaluate, record_observations
from pi_incubator.evaluation.table import print_table, show, write_json
from pi_incubator.evaluation.video import record_video
from pi_incubator.policies.policy import Policy
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking import Tracker, read_metrics

log = logging.getLogger(__name__)


def finish_run(
    cfg: ExperimentConfig, folder: RunFolder, env: VecEnv, policy: Policy, tracker: Tracker
) -> Evaluation:
    """Evaluate the trained policy and leave evaluation, curve, video and export in `folder` and `tracker`.

    Args:
        cfg: the experiment; reads `evaluation` and `deployment`.
        folder: the run's.
        env: the training env, whose device is used; the policy is judged in worlds of its own.
        policy: trained.
        tracker: takes every file as an artifact.

    Raises:
        UserError: a file cannot be written, or the export does not act like the policy; the latter once all
            other files are there.
    """
    num_worlds = max(cfg.evaluation.num_episodes, cfg.evaluation.video_worlds)
    worlds = evaluation_env(cfg, num_worlds, env.device)
    failure: Exception | None = None
    try:
        faults.reach("evaluation")
        evaluation = evaluate(worlds, policy, cfg.evaluation.num_episodes, evaluation_seed(cfg))
        print_table(evaluation.summary(), title=f"{evaluation.num_episodes} episodes, deterministic policy")
        tracker.log_artifact(folder.config)
        found = checkpoint.latest(folder)
        assert found is not None  # training ends with a checkpoint
        _set_old_export_aside(folder)
        write_json(evaluation.summary() | {"checkpoint": found.progress}, folder.evaluation)
        tracker.log_artifact(folder.evaluation)
        # What is needed comes before what is only nice to have.
        if _is_exported(cfg, policy):
            try:
                _export(cfg, folder, worlds, policy, origin_of(found, folder))
            except Exception as error:  # it is raised once everything else is there
                failure = error
            else:
                tracker.log_artifact(folder.onnx)
        for path in _draw(cfg, folder, worlds, policy):
            tracker.log_artifact(path)
    finally:
        worlds.close()
    _print_summary(folder, evaluation)
    if failure is not None:
        raise failure
    return evaluation


def _set_old_export_aside(folder: RunFolder) -> None:
    """Rename the `policy.onnx` of an earlier end of this run, or it would lie beside a newer evaluation."""
    if folder.onnx.exists():
        os.replace(folder.onnx, folder.old_onnx)


def _is_exported(cfg: ExperimentConfig, policy: Policy) -> bool:
    """Whether the run ends with an export; a policy that cannot have one is a warning."""
    if cfg.deployment.export != "onnx":
        return False
    for group in policy.groups:
        if group not in MEASURED:
            log.warning("no policy.onnx: the policy acts on the group %r, which no robot measures", group)
            return False
    return True


def _draw(cfg: ExperimentConfig, folder: RunFolder, worlds: VecEnv, policy: Policy) -> Iterator[Path]:
    """Yield the curve and the video as soon as each is complete."""
    if cfg.evaluation.curve:
        with _optional("curve"):
            title = f"{cfg.experiment.name}: {cfg.algorithm.name} on {cfg.env.name}"
            draw_curve(folder.metrics, folder.curve, title)
            yield folder.curve
    if cfg.evaluation.video:
        with _optional("video"):
            length_s, num_worlds = cfg.evaluation.video_length_s, cfg.evaluation.video_worlds
            seed = evaluation_seed(cfg)
            record_video(worlds, policy, folder.video, length_s=length_s, seed=seed, num_worlds=num_worlds)
            yield folder.video


@contextmanager
def _optional(name: str) -> Iterator[None]:
    """Turn whatever fails in this block into a warning: a trained policy is worth more than its pictures."""
    try:
        yield
    except Exception as error:  # drivers, fonts and encoders fail in many ways
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        log.warning("no %s: %s", name, " ".join(reason.split()))


def _export(cfg: ExperimentConfig, folder: RunFolder, worlds: VecEnv, policy: Policy, origin: Origin) -> None:
    """Write `policy.onnx`, and print its largest difference from the policy."""
    faults.reach("export")
    difference = _write_onnx(cfg, folder, worlds, policy, origin)
    folder.old_onnx.unlink(missing_ok=True)
    where = f"{cfg.deployment.num_check_observations:,} recorded observations"
    print(f"{folder.onnx.name}: the same actions within {difference:.1e} on {where}")


def _write_onnx(
    cfg: ExperimentConfig, folder: RunFolder, worlds: VecEnv, policy: Policy, origin: Origin
) -> float:
    """Write `policy.onnx`, as it goes into a bundle; gives its largest difference from the policy."""
    count, seed = cfg.deployment.num_check_observations, evaluation_seed(cfg)
    if cfg.network.acts_on_pixels:
        seen = record_observations(worlds, policy, count, seed, policy.groups)
        return export_pixels(cfg, policy, worlds.spec, seen, origin, folder.onnx)
    artifact = Source(cfg, worlds, policy, origin, record(worlds, policy, count, seed)).artifact()
    write_file(folder.onnx, artifact.model)
    return artifact.action_error


def _print_summary(folder: RunFolder, evaluation: Evaluation) -> None:
    result = evaluation.summary()["return"]
    rows = read_metrics(folder.metrics)
    wall = timedelta(seconds=round(rows[-1]["wall_s"])) if rows else "unknown time"
    print(f"return {show(result['mean'])} ± {show(result['std'])}, trained in {wall}; see {folder.path}")
