"""`pi-train`: train what an experiment file describes, then evaluate, film and export the policy."""

from __future__ import annotations

from pi_incubator.cli._main import run as run_command
from pi_incubator.cli._parser import Parser
from pi_incubator.run import run


def main(argv: list[str]) -> None:
    """Parse the command line and run the experiment; see `pi-train --help`."""
    parser = Parser(prog="pi-train", description=__doc__)
    parser.add_argument("--config", required=True, help="experiment file, YAML or JSON")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    arguments = parser.parse_args(argv)
    run(arguments.config, arguments.overrides)


def cli() -> None:
    """Entry point of the console script."""
    run_command(main)


if __name__ == "__main__":
    cli()
