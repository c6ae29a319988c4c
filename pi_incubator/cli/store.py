"""`pi-store`: trajectories of many runs in one place, to filter, search and learn from.

pi-store import data/half_cheetah --to data/store       recorded steps, or a Minari or LeRobot dataset
pi-store info data/store --where "return > 1000"
pi-store search data/store --like EPISODE:STEP -k 10
pi-store export data/store --where "is_complete" --to data/best
pi-store compact data/store
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser, count
from pi_incubator.errors import UserError

if TYPE_CHECKING:
    from pi_incubator.data.store.columns import Origin
    from pi_incubator.data.store.store import Store

SOURCES = ("training", "evaluation", "robot", "import")
LISTED = 20


def main(argv: list[str]) -> None:
    """Parse the command line and run one of the commands; see `pi-store --help`."""
    parser = Parser(prog="pi-store", description="Trajectories of many runs in one place.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    _add(commands, "ls", _ls, "the best episodes", where="episodes")
    _add(commands, "info", _info, "what a store holds", where="episodes")
    _add(commands, "compact", _compact, "join small files and make the indices of a search")
    search = _add(commands, "search", _search, "the steps that are most like one", where="steps")
    search.add_argument("--like", required=True, metavar="EPISODE:STEP", help="as pi-store ls names it")
    search.add_argument("-k", type=count, default=10, help="how many")
    export = _add(commands, "export", _export, "write episodes as a dataset", where="episodes")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the dataset to write")
    help_text = "dataset: a folder to learn from; lerobot: LeRobot's Lance layout"
    export.add_argument("--format", choices=("dataset", "lerobot"), default="dataset", help=help_text)
    given = commands.add_parser("import", help="add a dataset that training.record or pi-data import wrote")
    given.set_defaults(handler=_import)
    given.add_argument("dataset", type=Path, metavar="DATASET", help="its folder")
    given.add_argument(
        "--to", required=True, dest="store", metavar="STORE", help="folder or s3://BUCKET/PREFIX"
    )
    given.add_argument("--source", choices=SOURCES, default="training", help="where it came from")
    given.add_argument("--run", metavar="NAME", help="the run it is of; the name of the folder if not given")
    arguments = parser.parse_args(argv)
    arguments.handler(arguments)


def _add(commands: Any, name: str, handler: Callable[..., None], about: str, where: str = "") -> Parser:
    """A command on a store; `where` is what a condition is about."""
    command: Parser = commands.add_parser(name, help=about)
    command.set_defaults(handler=handler)
    command.add_argument("store", metavar="STORE", help="folder or s3://BUCKET/PREFIX")
    if where:
        help_text = f"SQL condition on the {where}; docs/store.md lists the columns"
        command.add_argument("--where", metavar="CONDITION", help=help_text)
    return command


def _ls(arguments: argparse.Namespace) -> None:
    from pi_incubator.evaluation.table import print_table

    rows = _open(arguments.store).rows(arguments.where).sort_by([("return", "descending")])
    names = ("return", "length", "source", "run")
    listed = rows.slice(0, LISTED).to_pylist()
    if not listed:
        print("no such episodes")
        return
    table = {str(row["episode"]): {name: row[name] for name in names} for row in listed}
    print_table(table, title=f"{len(listed)} of {len(rows):,} episodes", first_column="episode")


def _info(arguments: argparse.Namespace) -> None:
    import numpy as np

    from pi_incubator.data.store.columns import array_of
    from pi_incubator.evaluation.table import print_table

    store = _open(arguments.store)
    rows, manifest = store.rows(arguments.where), store.manifest
    groups = ", ".join(f"{name} {list(group.shape)}" for name, group in manifest.observations.items())
    print(
        f"{manifest.env} at {manifest.control_hz:g} Hz; observations {groups}; action [{manifest.action_dim}]"
    )
    length, complete = array_of(rows, "length"), array_of(rows, "is_complete")
    print(f"{int(length.sum()):,} steps in {len(rows):,} episodes, {int(complete.sum()):,} of them complete")
    measured = {"length": length, "return": array_of(rows, "return")[complete]}
    table: dict[str, Any] = {
        name: {how: float(getattr(np, how)(values)) for how in ("mean", "std", "min", "max")}
        for name, values in measured.items()
        if len(values)
    }
    if table:
        print_table(table, title=f"{arguments.store}: length of all episodes, return of complete ones")


def _search(arguments: argparse.Namespace) -> None:
    from pi_incubator.evaluation.table import print_table

    store = _open(arguments.store)
    found = store.like(*_step(arguments.like), arguments.k, arguments.where)
    columns = found.columns
    if not len(found.distance):
        print("no such steps")
        return
    table = {
        f"{columns['episode'][row]}:{columns['frame_index'][row]}": {
            "distance": float(found.distance[row]),
            "return to go": float(columns["return_to_go"][row]),
        }
        for row in range(len(found.distance))
    }
    print_table(table, title="the nearest first, in standard deviations", first_column="episode:step")


def _import(arguments: argparse.Namespace) -> None:
    _check_lancedb()
    from pi_incubator.data.datasets.source import read_source
    from pi_incubator.data.store.columns import Origin
    from pi_incubator.data.store.store import create_store, in_pieces

    name = arguments.run or arguments.dataset.name
    manifest, episodes = read_source(str(arguments.dataset))
    origin, store, num_steps = Origin(arguments.source, name), None, 0
    for piece in in_pieces(episodes):
        if store is None:
            store = create_store(arguments.store, manifest, piece)
            _check_new(store, origin)
        num_steps += store.append(piece, origin)
    if store is None:
        raise UserError(f"{arguments.dataset}: there are no episodes in it; name a dataset that has some")
    print(f"{arguments.store}: {num_steps:,} steps in {len(store.rows(_of(origin))):,} episodes added")


def _check_new(store: Store, origin: Origin) -> None:
    """Check that nothing was imported under the same name.

    Raises:
        UserError: something was; doing it again would double it.
    """
    if known := len(store.rows(_of(origin))):
        problem = f"has {known:,} episodes of {origin.source} {origin.run!r} already"
        raise UserError(f"{store.path}: {problem}; name these with --run")


def _of(origin: Origin) -> str:
    """The SQL condition for episodes from there."""
    run = origin.run.replace("'", "''")
    return f"source = '{origin.source}' AND run = '{run}'"


def _export(arguments: argparse.Namespace) -> None:
    store = _open(arguments.store)
    episodes = store.episodes(arguments.where)
    if arguments.format == "lerobot":
        from pi_incubator.data.store import lerobot

        lerobot.write(store.manifest, episodes, arguments.to)
        print(f"{arguments.to}: written in LeRobot's Lance layout")
        return
    from pi_incubator.data.datasets.layout import write_dataset

    write_dataset(store.manifest, episodes, arguments.to, "store-0", Path(arguments.store))
    print(f"{arguments.to}: written; learn from it with dataset={arguments.to}")


def _compact(arguments: argparse.Namespace) -> None:
    store = _open(arguments.store)
    store.compact()
    print(f"{arguments.store}: {store.num_steps():,} steps, compacted")


def _step(text: str) -> tuple[int, int]:
    episode, colon, step = text.partition(":")
    if not (colon and episode.isdecimal() and step.isdecimal()):
        raise UserError(f"--like {text}: is not EPISODE:STEP; pi-store ls shows the episodes")
    return int(episode), int(step)


def _check_lancedb() -> None:
    try:
        import pi_incubator.data.store.store  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"pi-store: a store needs {error.name}; pip install -e '.[store]'") from None


def _open(path: str) -> Store:
    _check_lancedb()
    from pi_incubator.data.store.store import open_store

    return open_store(path)


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
