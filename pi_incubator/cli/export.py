"""`pi-export`: write what a robot runs from a trained run, and check that it acts like the policy."""

from __future__ import annotations

import argparse

from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser, output_file
from pi_incubator.cli._trained import DEVICES, load_trained, open_run

MAX_WORLDS = 32  # that the policy is checked in


def main(argv: list[str]) -> None:
    """Parse the command line and export; see `pi-export --help`."""
    arguments = _parse(argv)
    cfg, folder = open_run(arguments.run, arguments.device)
    path = arguments.out or folder.onnx
    # Slow imports come after every check that does not need them.
    from pi_incubator.deploy.onnx import export_checked
    from pi_incubator.evaluation.evaluate import record_observations
    from pi_incubator.evaluation.table import print_table, write_json
    from pi_incubator.evaluation.worlds import evaluation_seed

    env, policy = load_trained(cfg, folder, MAX_WORLDS)
    num_observations = cfg.deployment.num_check_observations
    seed = evaluation_seed(cfg)
    observations = record_observations(env, policy, num_observations, seed, policy.actor_group)
    difference = export_checked(cfg, policy, env.spec, observations, path)
    result = {
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "opset": cfg.deployment.opset,
        "observations": num_observations,
        "max_abs_difference": difference,
        "tolerance": cfg.deployment.tolerance,
    }
    print_table({name: {"": value} for name, value in result.items()}, title=f"{folder.path.name}: ONNX")
    if arguments.json:
        write_json(result, arguments.json)
    env.close()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="pi-export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a trained run")
    parser.add_argument("--target", choices=["onnx"], default="onnx", help="what to write")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="default: RUN/policy.onnx")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default: a GPU when there is one")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the result as JSON")
    return parser.parse_args(argv)


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
