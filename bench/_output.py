"""Where a result goes: `--json` and `--plot`, the same for every measurement."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench._result import Result
from pi_incubator.cli._parser import output_file
from pi_incubator.evaluation.table import write_json


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `write_outputs` reads."""
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the result there")
    parser.add_argument("--plot", type=picture, metavar="FILE.png", help="also draw it there; or a folder")


def write_outputs(result: Result, arguments: argparse.Namespace) -> None:
    """Write the result and its picture where the command line asks for them.

    Raises:
        UserError: a file cannot be written.
    """
    if arguments.json:
        write_json(result, arguments.json)
    if arguments.plot:
        from bench._plot import plot

        plot(result, arguments.plot)


def picture(text: str) -> Path:
    """An existing folder, or a PNG in one, for `type=`."""
    path = Path(text)
    if path.is_dir() or (path.suffix == ".png" and path.parent.is_dir()):
        return path
    raise argparse.ArgumentTypeError(f"{text!r} is neither a folder nor a .png in an existing folder")
