"""`pi-bench`: measures this project and its peers, one subcommand a question; compares and reports."""

from __future__ import annotations

import argparse

from bench import (
    bridge,
    compare,
    everything,
    kernels,
    memory,
    ranks,
    replay,
    report,
    saves,
    scaling,
    sim,
    startup,
    train,
)
from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser

COMMANDS = {"train": train, "sim": sim, "kernels": kernels, "bridge": bridge}
COMMANDS |= {"startup": startup, "memory": memory, "scaling": scaling, "ranks": ranks}
COMMANDS |= {"saves": saves, "replay": replay, "all": everything}
COMMANDS |= {"compare": compare, "report": report}  # of what the others wrote


def main(argv: list[str]) -> int | None:
    """Parse the command line and measure; see `pi-bench --help`. Returns the exit code, None for 0."""
    parser = Parser(prog="pi-bench", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        summary, _, details = (module.__doc__ or "").partition("\n")
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=details.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
    arguments = parser.parse_args(argv)
    exit_code: int | None = COMMANDS[arguments.command].main(arguments)
    return exit_code


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
