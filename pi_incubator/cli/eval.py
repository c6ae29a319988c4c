"""`pi-eval`: judge a trained run over whole episodes of its deterministic policy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pi_incubator.cli._gates import newest, pass_gates, read_checked, run_of
from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser, count, output_file
from pi_incubator.cli._trained import DEVICES, load_trained
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from envs_gpu.vec_env import EnvSpec
    from pi_incubator.data.datasets.recorder import Recorder

RUNS_OWN = Path()
"""What `--onnx` is without a file's name."""


def main(argv: list[str]) -> int:
    """Parse the command line and evaluate; see `pi-eval --help`.

    Returns:
        The exit code: 1 where a gate failed.
    """
    arguments = _parse(argv)
    if arguments.gates:
        return _judge(arguments)
    overrides = on_backend(arguments.backend) if arguments.backend else []
    cfg, folder = open_run(arguments.run, arguments.device, overrides)
    onnx = folder.onnx if arguments.onnx is RUNS_OWN else arguments.onnx
    if onnx and not onnx.is_file():
        written = folder.export("onnx") / folder.onnx.name
        fix = f"write it with pi-export {arguments.run} and name it: --onnx {written}"
        raise UserError(f"{onnx}: file not found; {fix}")
    # Slow imports come after every check that does not need them.
    from envs_gpu.engine_log import EngineLog

    with EngineLog(folder.path):
        _evaluate(arguments, cfg, folder, onnx)
    return 0


def _evaluate(
    arguments: argparse.Namespace, cfg: ExperimentConfig, folder: RunFolder, onnx: Path | None
) -> None:
    """Run the episodes, and write down what they gave; `onnx` acts instead of the policy, if given."""
    from pi_incubator.data.datasets.recorder import recorded
    from pi_incubator.envs import evaluation_seed
    from pi_incubator.evaluation.acting import Act, Acting
    from pi_incubator.evaluation.evaluate import evaluate
    from pi_incubator.evaluation.table import print_table, write_json

    num_episodes = arguments.episodes or cfg.evaluation.num_episodes
    seed = evaluation_seed(cfg) if arguments.seed is None else arguments.seed
    video_worlds = arguments.video_worlds or cfg.evaluation.video_worlds
    num_envs = arguments.num_envs or max(num_episodes, video_worlds if arguments.video else 1)
    env, policy, found = load_trained(cfg, folder, num_envs)
    act: Acting | Act = policy
    if onnx:
        from pi_incubator.deploy.session import load_exported, load_pixels

        act = load_pixels(onnx) if cfg.network.acts_on_pixels else load_exported(onnx, env.interface())
    recorder = _recorder(arguments.record, folder, env.spec) if arguments.record else None
    worlds = recorded(env, recorder) if recorder else env
    summary = evaluate(worlds, act, num_episodes, seed).summary()
    if recorder:
        recorder.flush()
    print_table(summary, title=f"{folder.path.name}: {num_episodes} episodes of {cfg.env.name}")
    if arguments.json:
        # An exported file may be of any checkpoint.
        write_json(summary if onnx else summary | {"checkpoint": found.progress}, arguments.json)
    if arguments.video:
        from pi_incubator.evaluation.video import record_video

        length_s = cfg.evaluation.video_length_s
        record_video(env, act, arguments.video, length_s=length_s, seed=seed, num_worlds=video_worlds)
    env.close()


def _recorder(record: Path, folder: RunFolder, spec: EnvSpec) -> Recorder:
    """What writes the steps of an evaluation of the run in `folder`."""
    from pi_incubator.data.datasets.recorder import Recorder

    return Recorder(record, f"{folder.path.name}-eval", spec, field="--record")


def on_backend(backend: str) -> list[str]:
    """The settings of another backend; what the run says about its own does not apply to that."""
    no_room = ["env.max_contacts=null", "env.max_constraints=null"] if backend in ("mujoco", "mjx") else []
    return [f"env.backend={backend}", "env.mjx_impl=jax", *no_room]


def _judge(arguments: argparse.Namespace) -> int:
    """Run the gates on a bundle; gives the exit code."""
    cfg, folder = open_run(arguments.run or run_of(arguments.gates), arguments.device)
    read_checked(arguments.gates, newest(folder))
    from envs_gpu.engine_log import EngineLog

    num_episodes = arguments.episodes or cfg.evaluation.num_episodes
    with EngineLog(folder.path):
        env, policy, found = load_trained(cfg, folder, num_episodes)
        exit_code, entries = pass_gates(arguments.gates, cfg, folder, env, policy, num_episodes, found)
    if arguments.json:
        from pi_incubator.evaluation.table import write_json

        write_json(entries, arguments.json)
    env.close()
    return exit_code


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="pi-eval", description=__doc__)
    parser.add_argument("run", metavar="RUN", nargs="?", help="folder of a trained run")
    parser.add_argument(
        "--gates",
        type=Path,
        metavar="BUNDLE",
        help="judge a bundle; RUN is by default the run it lies in",
    )
    parser.add_argument("--episodes", type=count, metavar="N", help="default: as the run's config says")
    parser.add_argument(
        "--num-envs", type=count, metavar="N", help="parallel worlds; default: one an episode"
    )
    parser.add_argument("--backend", metavar="NAME", help="physics backend; mujoco runs on the CPU")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default: a GPU when there is one")
    parser.add_argument("--seed", type=int, help="of the worlds; default: the one after training")
    parser.add_argument(
        "--onnx",
        type=Path,
        nargs="?",
        const=RUNS_OWN,
        metavar="FILE",
        help="judge an exported file instead; default: RUN/policy.onnx",
    )
    parser.add_argument("--video", type=output_file, metavar="FILE", help="film the policy as an mp4")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="write the steps to a dataset")
    parser.add_argument("--video-worlds", type=count, metavar="N", help="worlds to show, as tiles")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the table's numbers as JSON")
    arguments = parser.parse_args(argv)
    if arguments.run is None and arguments.gates is None:
        parser.error("the following arguments are required: RUN")
    if arguments.gates:
        for name in ("num_envs", "backend", "seed", "onnx", "video", "video_worlds", "record"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name.replace('_', '-')} says nothing to --gates; leave it out")
    return arguments


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
