"""`pi-data`: look at a dataset, and exchange datasets with Minari and LeRobot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser
from pi_incubator.errors import UserError

if TYPE_CHECKING:
    from pi_incubator.data.datasets.layout import Episode, Manifest

FORMATS = ("minari", "lerobot")
NEEDS = "pip install -e '.[data]'"


def main(argv: list[str]) -> None:
    """Parse the command line and run one of the commands; see `pi-data --help`."""
    parser = Parser(prog="pi-data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    about = commands.add_parser("info", help="what a dataset holds")
    about.add_argument("dataset", type=Path, metavar="DATASET", help="folder that training.record wrote")
    given = commands.add_parser("import", help="make a dataset of one of another library")
    given.add_argument("source", type=Path, metavar="SOURCE", help="folder of a Minari or LeRobot v3 dataset")
    given.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the dataset to write")
    given.add_argument("--env", metavar="NAME", help="our task that the steps are of, if SOURCE does not say")
    export = commands.add_parser("export", help="write a dataset in the layout of another library")
    export.add_argument("dataset", type=Path, metavar="DATASET", help="folder that training.record wrote")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    export.add_argument("--format", choices=FORMATS, required=True, help="whose layout")
    arguments = parser.parse_args(argv)
    {"info": _info, "import": _import, "export": _export}[arguments.command](arguments)


def _info(arguments: argparse.Namespace) -> None:
    import numpy as np

    from pi_incubator.data.datasets.layout import read_episodes, read_manifest
    from pi_incubator.evaluation.table import print_table

    manifest = read_manifest(arguments.dataset)
    lengths, returns, num_complete = [], [], 0
    for episode in read_episodes(arguments.dataset, manifest):
        lengths.append(len(episode.reward))
        num_complete += episode.is_complete
        if episode.is_complete:
            returns.append(float(episode.reward.sum(dtype=np.float64)))
    groups = ", ".join(f"{name} {list(group.shape)}" for name, group in manifest.observations.items())
    print(
        f"{manifest.env} at {manifest.control_hz:g} Hz; observations {groups}; action [{manifest.action_dim}]"
    )
    print(f"{sum(lengths):,} steps in {len(lengths):,} episodes, {num_complete:,} of them complete")
    measured = {"length": lengths, "return": returns}
    rows = {
        name: {how: float(getattr(np, how)(values)) for how in ("mean", "std", "min", "max")}
        for name, values in measured.items()
        if values
    }
    if rows:
        print_table(rows, title=f"{arguments.dataset}: length of all episodes, return of complete ones")


def _import(arguments: argparse.Namespace) -> None:
    from pi_incubator.data.datasets.layout import write_dataset

    module = _module(_format_of(arguments.source))
    beside = arguments.source / ("data" if module.__name__.endswith("minari") else "meta")
    manifest = _manifest(beside, module, arguments)
    episodes = _checked(module.read(arguments.source), manifest, arguments)
    write_dataset(manifest, episodes, arguments.to, "import-0", arguments.source)
    _info(argparse.Namespace(dataset=arguments.to))


def _export(arguments: argparse.Namespace) -> None:
    from pi_incubator.data.datasets.layout import read_episodes, read_manifest

    module, manifest = _module(arguments.format), read_manifest(arguments.dataset)
    module.write(manifest, read_episodes(arguments.dataset, manifest), arguments.to)
    print(f"{arguments.to}: written in the layout of {arguments.format}")


def _format_of(source: Path) -> str:
    for name in FORMATS:
        module = _module(name)
        if getattr(module, f"is_{name}")(source):
            return name
    raise UserError(f"{source}: is no dataset of Minari or LeRobot v3; name the folder above data/ or meta/")


def _module(name: str) -> Any:
    """What reads and writes the layout `name`."""
    try:
        if name == "minari":
            from pi_incubator.data.datasets import minari as module
        else:
            from pi_incubator.data.datasets import lerobot as module  # type: ignore[no-redef]
    except ModuleNotFoundError as error:
        raise UserError(f"pi-data: the layout of {name} needs {error.name}; {NEEDS}") from None
    return module


def _manifest(beside: Path, module: Any, arguments: argparse.Namespace) -> Manifest:
    """That which our export left in the folder `beside`, or of the task that the user names.

    Raises:
        UserError: there is neither.
    """
    from pi_incubator.data.datasets.layout import MANIFEST, manifest_of, read_manifest

    if arguments.env is None:
        if not (beside / MANIFEST).is_file():
            fix = "name it with --env, for example --env half_cheetah"
            raise UserError(f"{arguments.source}: does not say of which task of ours it is; {fix}")
        return read_manifest(beside)
    import torch

    from envs_gpu.make import make_env
    from envs_gpu.tasks import TASKS
    from pi_incubator.cli._parser import known_names

    known_names(TASKS, [arguments.env])
    env = make_env(arguments.env, backend="mujoco", num_envs=1, device=torch.device("cpu"), seed=0)
    env.close()
    manifest, first = manifest_of(env.spec), next(module.read(arguments.source), None)
    # Other libraries rarely record what the critic of a task sees.
    groups = {
        name: form for name, form in manifest.observations.items() if first and name in first.observations
    }
    return replace(manifest, observations=groups or manifest.observations)


def _checked(
    episodes: Iterator[Episode], manifest: Manifest, arguments: argparse.Namespace
) -> Iterator[Episode]:
    """Yield the episodes, whose observations and actions are as wide as the task's.

    Raises:
        UserError: one is not.
    """
    for episode in episodes:
        widths = {name: value.shape[1:] for name, value in episode.observations.items()}
        expected = {name: group.shape for name, group in manifest.observations.items()}
        if widths != expected or episode.action.shape[1] != manifest.action_dim:
            has = f"observations {widths} and {episode.action.shape[1]} actions"
            needed = f"observations {expected} and {manifest.action_dim} actions"
            fix = "name the task that it was recorded in with --env"
            raise UserError(f"{arguments.source}: has {has}, {manifest.env} has {needed}; {fix}")
        yield episode


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
