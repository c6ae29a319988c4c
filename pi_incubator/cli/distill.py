"""`pi-distill`: trained policies teach a student that is smaller, or that sees less than they do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser, output_file
from pi_incubator.cli._trained import open_run
from pi_incubator.config import ConfigError, ExperimentConfig, load_checked
from pi_incubator.config.loader import SUFFIXES
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder, begin, check_resume, keep_num_envs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pi_incubator.distillation.learner import StudentLearner
    from pi_incubator.distillation.lessons import Lesson
    from pi_incubator.networks._actor_critic import ActorCritic

TOTAL_STEPS = 500_000
"""Environment steps where the student is a network's name; the teacher's own number is for learning alone."""

TeacherRuns = list[tuple[ExperimentConfig, RunFolder]]


def main(argv: list[str]) -> None:
    """Parse the command line and teach the student; see `pi-distill --help`."""
    arguments = _parse(argv)
    teachers = [open_run(teacher) for teacher in arguments.teacher]
    cfg = _student_config(arguments, teachers)
    with RunFolder(cfg) as folder:
        cfg = keep_num_envs(cfg, folder)
        check_resume(cfg, folder)
        _teach(cfg, folder, teachers, arguments.record)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="pi-distill", description=__doc__)
    parser.add_argument("--teacher", nargs="+", required=True, metavar="RUN", help="folders of trained runs")
    parser.add_argument(
        "--student",
        required=True,
        metavar="CONFIG_OR_NETWORK",
        help="experiment file of the student, or a network's name: then all else is as the first teacher's",
    )
    parser.add_argument("--offline", metavar="DATASET", help="learn from a file that --record wrote")
    parser.add_argument("--record", type=output_file, metavar="FILE", help="write what was collected")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.offline and arguments.record:
        raise UserError("--record and --offline exclude each other: nothing is collected offline; leave one")
    return arguments


def _student_config(arguments: argparse.Namespace, teachers: TeacherRuns) -> ExperimentConfig:
    """The run's config: the student's file, or the first teacher's settings with another network.

    Raises:
        ConfigError: a mistake in the file, the network's name or an override.
    """
    teacher_cfg, teacher_run = teachers[0]
    settings = [f"distillation.teachers={json.dumps(arguments.teacher)}"]
    if arguments.offline:
        settings.append(f"distillation.dataset={json.dumps(arguments.offline)}")
    source = Path(arguments.student)
    if source.suffix.lower() not in SUFFIXES:
        source = teacher_run.config
        settings += [
            f"network.name={arguments.student}",
            f"experiment.name={teacher_cfg.experiment.name}_student",
            f"experiment.output_dir={json.dumps(str(teacher_run.path.parent))}",
            f"training.total_steps={max(TOTAL_STEPS, teacher_cfg.batch_size)}",
        ]
    cfg = load_checked(source, [*settings, *arguments.overrides])
    if any(cfg.run_dir.resolve() == run.path.resolve() for _, run in teachers):
        problem, fix = "is the folder of a teacher, which would be lost", "set another name"
        raise ConfigError("pi-distill", "experiment.name", cfg.experiment.name, problem=problem, fix=fix)
    return cfg


def _teach(cfg: ExperimentConfig, folder: RunFolder, teachers: TeacherRuns, record: Path | None) -> None:
    """Everything after the checks that do not need torch."""
    import torch

    from pi_incubator import checkpoint
    from pi_incubator.autosize import settle_num_envs
    from pi_incubator.compute import plan_compute
    from pi_incubator.distillation.dagger import distill
    from pi_incubator.distillation.dataset import read_dataset, write_dataset
    from pi_incubator.distillation.lessons import make_lessons, make_student
    from pi_incubator.distillation.report import size_rows
    from pi_incubator.evaluation.table import print_table
    from pi_incubator.finish import finish_run
    from pi_incubator.tracking import make_tracker

    cfg, plan = settle_num_envs(cfg, plan_compute(cfg))
    torch.manual_seed(cfg.experiment.seed)
    lessons = make_lessons(cfg, plan, folder, teachers)
    student = make_student(cfg, plan, lessons)
    if record and student.state_width:
        problem = "the file holds single steps, a recurrent student learns from sequences"
        raise UserError(f"--record: {problem}; leave it out")
    spec, recorded = lessons[0].env.spec, None
    if cfg.distillation.dataset:
        width = lessons[0].teacher.feature_width if cfg.distillation.feature_coef else None
        recorded = read_dataset(cfg.distillation.dataset, spec, student.groups, width)
    begin(cfg, folder)
    print("\n".join(plan.reasons))
    print_table(size_rows(student, lessons), title="parameters")
    with make_tracker(cfg, folder, checkpoint.next_iteration(folder)) as tracker:
        tracker.log_params(plan.resolved())
        learner, samples = distill(cfg, folder, tracker, lessons, student, recorded)
        if record:
            write_dataset(samples, spec, record)
        results = _judge_int8(cfg, lessons, student, learner) | _judge(cfg, lessons, student)
        tracker.log_artifact(_write(results, folder))
        finish_run(cfg, folder, lessons[0].env, student, tracker)
    for lesson in lessons:
        lesson.env.close()


def _judge(cfg: ExperimentConfig, lessons: Sequence[Lesson], student: ActorCritic) -> dict[str, object]:
    """Print what the student kept of each teacher; returns the numbers."""
    from pi_incubator.distillation.report import compare

    comparisons = [compare(cfg, lesson, student) for lesson in lessons]
    for comparison in comparisons:
        print(comparison.sentence())
    return {"teachers": [comparison.as_json() for comparison in comparisons]}


def _judge_int8(
    cfg: ExperimentConfig, lessons: Sequence[Lesson], student: ActorCritic, learner: StudentLearner
) -> dict[str, object]:
    """Judge a student that learned to round while it still does, then make its layers plain again."""
    from pi_incubator.distillation.quantize import make_plain
    from pi_incubator.distillation.report import compare

    if not learner.layers:
        return {}
    comparisons = [compare(cfg, lesson, student) for lesson in lessons]
    for comparison in comparisons:
        print(f"rounded to int8: {comparison.sentence()}")
    make_plain(student.actor)
    return {"fake_quantized_int8": [comparison.as_json() for comparison in comparisons]}


def _write(results: dict[str, object], folder: RunFolder) -> Path:
    from pi_incubator.evaluation.table import write_json

    write_json(results, folder.distillation)
    return folder.distillation


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
