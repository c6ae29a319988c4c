"""`pi-bench`: measurements of this project and its peers; one subcommand a question."""

from __future__ import annotations

from bench import bridge, kernels, memory, scaling, sim, startup, train
from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser

COMMANDS = {"train": train, "sim": sim, "kernels": kernels, "startup": startup, "memory": memory}
COMMANDS |= {"bridge": bridge, "scaling": scaling}


def main(argv: list[str]) -> None:
    """Parse the command line and measure; see `pi-bench --help`."""
    parser = Parser(prog="pi-bench", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        summary, _, details = (module.__doc__ or "").partition("\n")
        module.add_arguments(subparsers.add_parser(name, help=summary, description=summary, epilog=details))
    arguments = parser.parse_args(argv)
    COMMANDS[arguments.command].main(arguments)


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
