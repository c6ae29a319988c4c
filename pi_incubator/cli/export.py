"""`pi-export`: write what a robot runs from a trained run, and check that it acts like the policy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_incubator.cli import _promotion
from pi_incubator.cli._gates import pass_gates
from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser, count, output_file
from pi_incubator.cli._trained import DEVICES, load_trained
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy import PRECISIONS
from pi_incubator.errors import UserError
from pi_incubator.registry import exporters
from pi_incubator.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from pi_incubator.deploy.artifact import Artifact, Source


def main(argv: list[str]) -> int:
    """Parse the command line and export; see `pi-export --help`.

    Returns:
        The exit code: 1 where a gate failed.
    """
    if argv and argv[0] in _promotion.COMMANDS:
        _promotion.main(argv)
        return 0
    arguments = _parse(argv)
    cfg, folder = open_run(arguments.run, arguments.device)
    # Slow imports come after every check that does not need them.
    from envs_gpu.engine_log import EngineLog

    with EngineLog(folder.path):
        if not cfg.network.acts_on_pixels:
            return _export(arguments, cfg, folder)
        _export_pixels(arguments, cfg, folder)
    return 0


def _export(arguments: argparse.Namespace, cfg: ExperimentConfig, folder: RunFolder) -> int:
    """Write the bundle, and judge it if asked to; gives the exit code."""
    from pi_incubator.deploy.artifact import Source, origin_of
    from pi_incubator.deploy.record import record
    from pi_incubator.envs import evaluation_seed
    from pi_incubator.evaluation.table import print_table, write_json

    num_episodes = arguments.episodes or cfg.evaluation.num_episodes
    env, policy, found = load_trained(cfg, folder, num_episodes)
    recording = record(env, policy, cfg.deployment.num_check_observations, evaluation_seed(cfg))
    source = Source(cfg, env, policy, origin_of(found, folder), recording)
    artifact = source.artifact(arguments.precision)
    path = exporters.get(arguments.target)(artifact, arguments.out or folder.export(arguments.target))
    result = _describe(artifact, path, source, num_episodes)
    print_table({name: {"": value} for name, value in result.items()}, title=f"{folder.path.name}: {path}")
    exit_code = 0
    if arguments.gates:
        gates = pass_gates(path, cfg, folder, env, policy, num_episodes, found, recording)
        exit_code, result["gates"] = gates
    if arguments.json:
        write_json(result, arguments.json)
    env.close()
    return exit_code


def _describe(artifact: Artifact, path: Path, source: Source, num_episodes: int) -> dict[str, Any]:
    """What was written, and how well it does in simulation beside the policy in float32."""
    kept = source.simulated_return(artifact, num_episodes)
    is_exact = artifact.contract["precision"] == "fp32"
    exact = kept if is_exact else source.simulated_return(source.artifact(), num_episodes)
    return {
        "path": str(path),
        "precision": artifact.contract["precision"],
        "onnx_bytes": len(artifact.model),
        "opset": artifact.contract["onnx"]["opset"],
        "observations": source.recording.count,
        "max_action_error": artifact.action_error,
        "return": kept,
        "return_fp32": exact,
        "episodes": num_episodes,
    }


def _export_pixels(arguments: argparse.Namespace, cfg: ExperimentConfig, folder: RunFolder) -> None:
    """Pictures come from a camera, and no contract says which: one file, without a bundle."""
    if arguments.target != "onnx" or arguments.precision != "fp32" or arguments.gates:
        problem = "a policy that sees pixels is exported to onnx in fp32 alone, and has no gates"
        raise UserError(f"--target {arguments.target} --precision {arguments.precision}: {problem}")
    from pi_incubator.deploy.artifact import origin_of
    from pi_incubator.deploy.pixels import export_pixels
    from pi_incubator.envs import evaluation_seed
    from pi_incubator.evaluation.evaluate import record_observations

    env, policy, found = load_trained(cfg, folder, 1)
    number, seed = cfg.deployment.num_check_observations, evaluation_seed(cfg)
    seen = record_observations(env, policy, number, seed, policy.groups)
    path = (arguments.out or folder.export(arguments.target)) / folder.onnx.name
    difference = export_pixels(cfg, policy, env.spec, seen, origin_of(found, folder), path)
    print(f"{path}: the same actions within {difference:.1e} on {number:,} recorded observations")
    env.close()


def _parse(argv: list[str]) -> argparse.Namespace:
    others = f"other commands: {', '.join(_promotion.COMMANDS)}, each with its own --help"
    parser = Parser(prog="pi-export", description=__doc__, epilog=others)
    parser.add_argument("run", metavar="RUN", help="folder of a trained run")
    parser.add_argument("--target", choices=exporters.names(), default="onnx", help="what to write")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export/TARGET")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the network")
    parser.add_argument("--gates", action="store_true", help="judge the bundle; exit code 1 if it fails")
    parser.add_argument("--episodes", type=count, metavar="N", help="default: as the run's config says")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default: a GPU when there is one")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the result as JSON")
    return parser.parse_args(argv)


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
