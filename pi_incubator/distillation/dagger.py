"""DAgger (Ross et al. 2011): the student meets the states that it leads itself into, and is told what to do.

    for every iteration
        a coin for each world says who leads it: the teacher ever more rarely, and soon never
        T steps of every world; the teacher labels each observation, whoever leads
        optimizer steps on everything that was seen lately

A student that learned only from worlds that its teacher leads would not know what to do after its first
mistake.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pi_incubator import checkpoint
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.distillation.collect import Collector
from pi_incubator.distillation.learner import StudentLearner
from pi_incubator.distillation.lessons import Lesson
from pi_incubator.distillation.samples import OBSERVATION, Samples, num_rows
from pi_incubator.networks._actor_critic import ActorCritic
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking import Tracker
from pi_incubator.trainers.on_policy import check_finite, due, to_numbers


def distill(
    cfg: ExperimentConfig,
    folder: RunFolder,
    tracker: Tracker,
    lessons: Sequence[Lesson],
    student: ActorCritic,
    recorded: Samples | None = None,
) -> tuple[StudentLearner, Samples]:
    """Teach `student` to the last iteration, continuing from the newest checkpoint in `folder`.

    What had been sampled is not part of a checkpoint: a continued run samples anew.

    Args:
        cfg: the run's.
        folder: its folder.
        tracker: takes the metrics.
        lessons: the teachers and their worlds, which are not stepped where there are `recorded` samples.
        student: untrained; changed in place.
        recorded: to learn from instead; None collects.

    Returns:
        The learner, and the samples that it learned from last.
    """
    learner = StudentLearner(cfg, student, lessons[0].teacher.feature_width)
    prepare(cfg, student, lessons, recorded)
    parts: dict[str, checkpoint.HasState] = {"policy": student, "learner": learner}
    collectors: list[Collector] = []
    if recorded is None:
        collectors = [Collector(cfg, lesson, student) for lesson in lessons]
        parts |= {f"env_{index}": lesson.env for index, lesson in enumerate(lessons)}
        parts |= {f"memory_{index}": one for index, one in enumerate(collectors) if one.state_dict()}
        samples = Samples(num_rows(cfg, student, cfg.distillation.buffer_size), student.log_std.device)
    else:
        samples = recorded
    for iteration in range(checkpoint.restore(folder, parts), cfg.num_iterations):
        learner.begin(iteration)
        if collectors:
            with tracker.span("collect"):
                for collector in collectors:
                    collector.collect(samples, teacher_share(cfg, iteration))
                if cfg.distillation.normalizer == "gather":
                    student.commit()
        with tracker.span("update"):
            metrics = learner.update(samples)
        last, env_steps = iteration + 1 == cfg.num_iterations, (iteration + 1) * cfg.batch_size
        logs = last or due(iteration, cfg.training.log_every)
        saves = last or due(iteration, cfg.checkpoint.save_every)
        if logs:
            numbers = to_numbers(metrics) | {"teacher_share": teacher_share(cfg, iteration)}
            tracker.log(iteration, env_steps, numbers | _world_metrics(lessons, recorded))
        if logs or saves:
            for lesson in lessons:
                lesson.env.check()
            check_finite(student)
        if saves:
            checkpoint.save(folder, iteration, env_steps, parts, cfg, cfg.checkpoint.keep)
    learner.finish()
    return learner, samples


def prepare(
    cfg: ExperimentConfig, student: ActorCritic, lessons: Sequence[Lesson], recorded: Samples | None
) -> None:
    """Give the student what it does not learn: how to see, and the first teacher's spread of actions.

    Raises:
        ConfigError: the teacher has no normalizer that the student could keep.
    """
    teacher = lessons[0].teacher.policy
    with torch.no_grad():
        student.log_std.copy_(teacher.log_std)
    if cfg.distillation.normalizer == "teacher":
        keep_normalizer(student, teacher)
    elif recorded is not None:
        held = recorded.held()
        student.gather({group: held[OBSERVATION + group] for group in student.groups})
        student.commit()


def keep_normalizer(student: ActorCritic, teacher: ActorCritic) -> None:
    """Copy the teacher's normalizer of every group that the student reads.

    Raises:
        ConfigError: the teacher does not read one of them.
    """
    for group in student.groups:
        known = group in teacher.groups
        if not known or type(teacher.normalizer[group]) is not type(student.normalizer[group]):
            problem = f"the teacher has no such normalizer of the group {group!r}, which the student reads"
            raise ConfigError(
                "config", "distillation.normalizer", "teacher", problem=problem, fix="set it to gather"
            )
        student.normalizer[group].load_state_dict(teacher.normalizer[group].state_dict())


def teacher_share(cfg: ExperimentConfig, iteration: int) -> float:
    """Expected share of the worlds that the teacher leads: from 1 linearly to 0."""
    phase = cfg.distillation.teacher_phase * cfg.num_iterations
    return max(0.0, 1.0 - iteration / phase) if phase else 0.0


def _world_metrics(lessons: Sequence[Lesson], recorded: Samples | None) -> dict[str, float]:
    """What the worlds report; those of further lessons under their teachers' names."""
    if recorded is not None:
        return {}
    first, *others = [lesson.env.pop_metrics() for lesson in lessons]
    for lesson, metrics in zip(lessons[1:], others, strict=True):
        first |= {f"{lesson.teacher.name}/{name}": value for name, value in metrics.items()}
    return first
