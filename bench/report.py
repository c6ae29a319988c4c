"""Results as one HTML page, pictures inside it: hardware, versions, tables with their spread, commands.

With no files named it reads bench/results/*.json. What no file has of the figures that a GPU is asked for
is shown as not measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench._result import read_result
from pi_incubator.cli._parser import output_file
from pi_incubator.errors import UserError

RESULTS = Path("bench/results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    files_help = f"results, or folders of them (default: {RESULTS})"
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=files_help)
    out_help = "the page (default: %(default)s)"
    parser.add_argument("--out", type=output_file, default=Path("report.html"), metavar="FILE", help=out_help)


def main(arguments: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        UserError: there are no results, one cannot be read, or the page cannot be written.
    """
    from bench._page import page  # draws: matplotlib is for those who need it

    files = list(dict.fromkeys(_files(arguments.files or [RESULTS])))
    text = page([(file.name, read_result(file)) for file in files])
    try:
        arguments.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{arguments.out}: cannot be written ({error.strerror}); name another file") from None
    print(f"{arguments.out}: {len(files)} results, {len(text) / 1e6:.1f} MB")


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that are named, and those of folders by name."""
    for path in paths:
        found = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not found or (path == RESULTS and not path.exists()):
            example = f"pi-bench sim --json {path}/sim.json"
            raise UserError(f"{path}: no results there; name files, or measure: {example}")
        yield from found
