"""`pi-distill`: trained policies teach a student that is smaller, or that sees less than they do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pi_incubator.cli._main import run as run_command
from pi_incubator.cli._parser import Parser, output_file
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.config.algorithms.distillation import DistillationSettings
from pi_incubator.config.errors import DEFAULTS
from pi_incubator.config.loader import override
from pi_incubator.config.packaged import SUFFIXES
from pi_incubator.config.without_effect import training_worlds_only
from pi_incubator.errors import UserError
from pi_incubator.run import run
from pi_incubator.run_folder import RunFolder, open_run

TOTAL_STEPS = 500_000
"""Environment steps where the student is a network's name; the teacher needed many more to learn alone."""


def main(argv: list[str]) -> None:
    """Parse the command line and teach the student; see `pi-distill --help`."""
    arguments = _parse(argv)
    config, settings = _student(arguments)
    settings += arguments.overrides
    _check_folder(arguments, config, settings)
    run(config, settings)


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


def _student(arguments: argparse.Namespace) -> tuple[Path, list[str]]:
    """The student's file and the settings over it.

    Where the student is a network's name, the file is the saved config of the first teacher. The horizon is
    passed on: a file that names another algorithm inherits none of the settings of the one before.
    """
    teacher_cfg, teacher_run = _open_teachers(arguments.teacher)[0]
    settings = ["algorithm.name=distillation", override("algorithm.teachers", arguments.teacher)]
    if arguments.offline:
        settings.append(override("algorithm.dataset", arguments.offline))
    if arguments.record:
        settings.append(override("algorithm.record", str(arguments.record)))
    source = Path(arguments.student)
    if source.suffix.lower() in SUFFIXES:
        return source, settings + _horizon_of(_read_student(source))
    steps = teacher_cfg.steps_per_iteration
    settings += [
        override("network.name", arguments.student),
        override("experiment.name", f"{teacher_cfg.experiment.name}_student"),
        override("experiment.output_dir", str(teacher_run.path.parent)),
        f"training.total_steps={max(TOTAL_STEPS, steps)}",
    ]
    settings += [f"{field}={json.dumps(_default(field))}" for field in DistillationSettings.unused]
    if arguments.offline:  # the teacher's randomization is in the recorded steps
        settings += [f"{field}=null" for field in training_worlds_only()]
    return teacher_run.config, settings + _horizon_of(teacher_cfg)


def _default(field: str) -> Any:
    """The default of `section.key`; what distillation does not use is not inherited from a teacher."""
    section, key = field.split(".")
    return type(getattr(DEFAULTS, section)).model_fields[key].default


def _read_student(source: Path) -> ExperimentConfig | None:
    """The student's experiment as its file says; None where it waits for the teachers to be named.

    Raises:
        ConfigError: the file has another mistake.
    """
    try:
        return load_config(source)
    except ConfigError as error:
        if error.field != "algorithm.teachers":
            raise
        return None  # its algorithm is distillation already, so its settings are kept


def _horizon_of(cfg: ExperimentConfig | None) -> list[str]:
    """The setting that gives the student the horizon of `cfg`, if that has one."""
    horizon = getattr(cfg.algorithm, "horizon", None) if cfg else None
    return [f"algorithm.horizon={horizon}"] if horizon else []


def _open_teachers(runs: list[str]) -> list[tuple[ExperimentConfig, RunFolder]]:
    return [open_run(run) for run in runs]


def _check_folder(arguments: argparse.Namespace, config: Path, settings: list[str]) -> None:
    """Refuse to train into the folder of a teacher, which would be lost."""
    cfg = load_config(config, settings)
    if any(cfg.run_dir.resolve() == Path(teacher).resolve() for teacher in arguments.teacher):
        problem, fix = "is the folder of a teacher, which would be lost", "set another name"
        raise ConfigError("pi-distill", "experiment.name", cfg.experiment.name, problem=problem, fix=fix)


def cli() -> None:
    """Entry point of the console script."""
    run_command(main)


if __name__ == "__main__":
    cli()
