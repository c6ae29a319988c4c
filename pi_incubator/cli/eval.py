"""`pi-eval`: judge a trained run over whole episodes of its deterministic policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser, count
from pi_incubator.cli._trained import load_trained, open_run, output_file
from pi_incubator.errors import UserError

if TYPE_CHECKING:
    import argparse


def main(argv: list[str]) -> None:
    """Parse the command line and evaluate; see `pi-eval --help`."""
    arguments = _parse(argv)
    overrides = ["compute.compile=off"]  # a few thousand steps do not repay it
    if arguments.backend:
        overrides.append(f"env.backend={arguments.backend}")
    if arguments.backend == "mujoco":
        overrides.append("compute.device=cpu")
    cfg, folder = open_run(arguments.run, overrides)
    if arguments.onnx and not folder.onnx.is_file():
        raise UserError(f"{folder.onnx}: is not there; write it with pi-export {arguments.run}")
    # Slow imports come after every check that does not need them.
    from pi_incubator.evaluation.evaluate import evaluate
    from pi_incubator.evaluation.table import print_table, write_json
    from pi_incubator.evaluation.worlds import evaluation_seed

    episodes = arguments.episodes or cfg.evaluation.num_episodes
    seed = evaluation_seed(cfg) if arguments.seed is None else arguments.seed
    env, policy = load_trained(cfg, folder, arguments.num_envs or episodes)
    evaluation = evaluate(env, _onnx(arguments, folder.onnx) or policy, episodes, seed)
    summary = evaluation.summary()
    print_table(summary, title=f"{folder.path.name}: {episodes} episodes of {cfg.env.name}")
    if arguments.json:
        write_json(summary, arguments.json)
    env.close()
