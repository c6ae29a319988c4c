"""`pi-export`: write what a robot runs from a trained run, and check that it acts like the policy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser, count, output_file
from pi_incubator.cli._trained import DEVICES, load_trained, open_run
from pi_incubator.errors import UserError
from pi_incubator.registry import exporters

if TYPE_CHECKING:
    from pi_incubator.deploy.artifact import Artifact, Source

PRECISIONS = ("fp32", "fp16", "int8")  # as in deploy.precision, which is slow to import


def main(argv: list[str]) -> None:
    """Parse the command line and export; see `pi-export --help`."""
    arguments = _parse(argv)
    cfg, folder = open_run(arguments.run, arguments.device)
    if cfg.env.pixels is not None:
        _export_pixels(arguments, cfg, folder)
        return
    # Slow imports come after every check that does not need them.
    from pi_incubator.deploy.artifact import Source, origin_of
    from pi_incubator.deploy.record import record
    from pi_incubator.evaluation.table import print_table, write_json
    from pi_incubator.evaluation.worlds import evaluation_seed

    num_episodes = arguments.episodes or cfg.evaluation.num_episodes
    env, policy = load_trained(cfg, folder, num_episodes)
    recording = record(env, policy, cfg.deployment.num_check_observations, evaluation_seed(cfg))
    source = Source(cfg, env, policy, origin_of(folder), recording)
    artifact = source.artifact(arguments.precision)
    path = exporters.get(arguments.target)(artifact, arguments.out or folder.path / "export")
    result = _describe(artifact, path, source, num_episodes)
    print_table({name: {"": value} for name, value in result.items()}, title=f"{folder.path.name}: {path}")
    if arguments.json:
        write_json(result, arguments.json)
    env.close()
