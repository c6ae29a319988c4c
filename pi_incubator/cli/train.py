"""`pi-train`: train what an experiment file describes, then evaluate, film and export the policy."""

from __future__ import annotations

import argparse
from typing import Any

from pi_incubator.cli._main import run as run_command
from pi_incubator.cli._parser import Parser
from pi_incubator.config import load_config
from pi_incubator.config.packaged import CONFIGS, packaged_configs, summary_of
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table
from pi_incubator.launch.plan import make_plan
from pi_incubator.launcher import is_launched
from pi_incubator.run import run


def main(argv: list[str]) -> int:
    """Parse the command line and run the experiment, here or by a launcher; see `pi-train --help`.

    Returns:
        The exit code.
    """
    parser = Parser(prog="pi-train", description=__doc__)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="experiment file, YAML or JSON; one of --list-configs is found from any folder",
    )
    parser.add_argument("--list-configs", action=ListConfigs, help="show the packaged experiment files")
    parser.add_argument(
        "--launcher",
        choices=["none", "ray"],
        help="short for compute.launcher: ray starts compute.num_workers processes on a Ray cluster",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    arguments = parser.parse_intermixed_args(argv)
    config, overrides = arguments.config, arguments.overrides
    if arguments.launcher:
        if is_launched():
            fix = "remove --launcher, or start pi-train itself and unset WORLD_SIZE"
            raise UserError(f"--launcher {arguments.launcher}: torchrun started this process already; {fix}")
        overrides = [*overrides, f"compute.launcher={arguments.launcher}"]
    if not is_launched():
        cfg = load_config(config, overrides)
        if cfg.compute.launcher == "ray":
            from pi_incubator.launch import ray

            return ray.train(make_plan(cfg, config, overrides))
    run(config, overrides)
    return 0


class ListConfigs(argparse.Action):
    """Print the experiment files that come with the package, and end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        rows = {name: {"what": summary_of(name)} for name in packaged_configs()}
        print_table(rows, title=f"experiment files in {CONFIGS}", first_column="--config")
        parser.exit()


def cli() -> None:
    """Entry point of the console script."""
    run_command(main)


if __name__ == "__main__":
    cli()
