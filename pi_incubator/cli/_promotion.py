"""`pi-export promote`, `rollback` and `list`: which bundle robots are to run."""

from __future__ import annotations

from pathlib import Path

from pi_incubator.cli._gates import newest, read_checked, run_of
from pi_incubator.cli._parser import Parser
from pi_incubator.run_folder import open_run

COMMANDS = ("promote", "rollback", "list")


def main(argv: list[str]) -> None:
    """Parse a command line that begins with one of `COMMANDS`, and do it."""
    command, *rest = argv
    {"promote": _promote, "rollback": _rollback, "list": _list}[command](rest)


def _promote(argv: list[str]) -> None:
    """Give a bundle that passed its gates an alias in MLflow's model registry."""
    parser = Parser(prog="pi-export promote", description=_promote.__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder or .tar.gz")
    parser.add_argument("--alias", choices=("candidate", "champion"), default="candidate")
    parser.add_argument("--run", metavar="RUN", help="that it comes from; default: the one it lies in")
    arguments = parser.parse_args(argv)
    cfg, folder = open_run(arguments.run or run_of(arguments.bundle), "cpu")
    bundle = read_checked(arguments.bundle, newest(folder))
    from pi_incubator.deploy.promotion import promote

    version = promote(bundle, cfg, folder, arguments.alias)
    print(f"{cfg.experiment.name} version {version} is {arguments.alias}")


def _rollback(argv: list[str]) -> None:
    """Make the champion before the present one champion again."""
    parser = Parser(prog="pi-export rollback", description=_rollback.__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run of the experiment")
    cfg, folder = open_run(parser.parse_args(argv).run, "cpu")
    from pi_incubator.deploy.promotion import rollback

    print(f"{cfg.experiment.name} version {rollback(cfg, folder)} is champion again")


def _list(argv: list[str]) -> None:
    """Print what is registered, newest first."""
    parser = Parser(prog="pi-export list", description=_list.__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run of the experiment")
    cfg, folder = open_run(parser.parse_args(argv).run, "cpu")
    from pi_incubator.deploy.promotion import versions
    from pi_incubator.evaluation.table import print_table

    if rows := versions(cfg, folder):
        print_table(rows, title=cfg.experiment.name, first_column="version")
    else:
        print(f"{cfg.experiment.name}: nothing is registered; promote a bundle that passed its gates")
