"""What the replay buffers of off-policy learning cost: time beside an update of the config, and memory.

Adding a step of all worlds, sampling a minibatch uniformly, sampling one by priority, setting its new
priorities, and an update take turns in blocks, in one process, on full buffers. Memory is what the process
grew by.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import psutil
import torch
from torch import Tensor

from bench._loops._off_policy import is_off_policy
from bench._loops.pi_incubator import OurLoop
from bench._output import add_output_arguments, write_outputs
from bench._result import Metric, make_metric, make_result
from bench._train_plan import load
from pi_incubator.autosize import random_actions
from pi_incubator.cli._parser import count
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.data.replay.prioritized import Prioritized
from pi_incubator.data.replay.replay import steps_of
from pi_incubator.data.replay.ring import Ring
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table
from pi_incubator.provenance import flatten
from pi_incubator.training.off_policy import OffPolicy

CONFIG, TASK = "configs/sac/half_cheetah.yaml", "ant"
BLOCK = 4
"""Calls of a function in a turn."""
KINDS: Mapping[str, type[Ring]] = {"uniform": Ring, "prioritized": Prioritized}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--config", default=CONFIG, help="experiment file (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=100, help="turns of each (default: %(default)s)")
    overrides_help = f"settings that override it (default: env.name={TASK}, where --config is left out)"
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=overrides_help)
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the table and write the result.

    Raises:
        UserError: a mistake in the config, or its algorithm has no replay buffer.
    """
    cfg = load(arguments, *([f"env.name={TASK}"] if arguments.config == CONFIG else []))
    if not is_off_policy(cfg):
        raise UserError(f"algorithm.name = {cfg.algorithm.name!r}: has no replay buffer; name sac, for one")
    result = make_result("replay", {"config": flatten(cfg), "rounds": arguments.rounds}, {})
    metrics = _measure(cfg, arguments.rounds)
    rows = {
        name: {key: metric[key] for key in ("unit", "median", "min", "max")}
        for name, metric in metrics.items()
    }
    print_table(rows, title=f"replay of {cfg.algorithm.name} on {cfg.env.name}", first_column="metric")
    write_outputs(result | {"metrics": metrics}, arguments)


def _measure(cfg: ExperimentConfig, num_rounds: int) -> dict[str, Metric]:
    settings = cast(ReplaySettings, cfg.algorithm)
    loop = OurLoop(_filled_early(cfg))
    algorithm = loop.algorithm
    assert isinstance(algorithm, OffPolicy)
    loop.warm_up()
    steps = _one_step(algorithm)
    step_bytes = sum(column.nbytes for column in steps.values()) / algorithm.env.num_envs
    buffers, metrics = {}, {}
    for name, kind in KINDS.items():
        _full(kind, algorithm, steps, algorithm.env.num_envs)  # loads and compiles what it needs
        buffers[name], grown_bytes = _full(kind, algorithm, steps, settings.buffer_size)
        over = grown_bytes / (len(buffers[name]) * step_bytes)
        metrics[f"memory over raw bytes: {name}"] = make_metric([over], "ratio", "lower")
    size, minibatch = settings.batch_size, algorithm.minibatch(settings.batch_size)
    sampled = buffers["prioritized"].sample(size)
    contestants: dict[str, Callable[[], Any]] = {
        "add": lambda: buffers["uniform"].add(steps),
        "add, prioritized": lambda: buffers["prioritized"].add(steps),
        "sample": lambda: buffers["uniform"].sample(size),
        "sample, prioritized": lambda: buffers["prioritized"].sample(size),
        "new priorities": lambda: buffers["prioritized"].update_priority(sampled["index"], sampled["weight"]),
        "update": lambda: algorithm.step(minibatch),
    }
    seconds = _take_turns(contestants, num_rounds, loop.synchronize)
    algorithm.close()
    return metrics | _metrics_of(seconds)


def _metrics_of(seconds: dict[str, list[float]]) -> dict[str, Metric]:
    """Microseconds of each, and their ratios, each of turns of the same round."""
    metrics = {
        f"time: {name}": make_metric([1e6 * taken_s for taken_s in rounds], "us", "lower")
        for name, rounds in seconds.items()
    }
    columns = zip(seconds["add"], seconds["sample"], seconds["update"], strict=True)
    shares = [100 * (add_s + sample_s) / update_s for add_s, sample_s, update_s in columns]
    metrics["add and sample: of an update"] = make_metric(shares, "%", "lower")
    pairs = zip(seconds["sample, prioritized"], seconds["sample"], strict=True)
    ratios = [prioritized_s / uniform_s for prioritized_s, uniform_s in pairs]
    metrics["prioritized over uniform: sample"] = make_metric(ratios, "ratio", "lower")
    return metrics


def _take_turns(
    contestants: dict[str, Callable[[], Any]], num_rounds: int, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of a call of each, one number a round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(num_rounds + 1):
        for name, run in contestants.items():
            synchronize()
            began_s = time.perf_counter()
            for _ in range(BLOCK):
                run()
            synchronize()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - began_s) / BLOCK)
    return seconds


def _filled_early(cfg: ExperimentConfig) -> ExperimentConfig:
    """`cfg` whose own buffer is small; the measured ones have the size that it says."""
    algorithm = cast(ReplaySettings, cfg.algorithm)
    small = max(algorithm.batch_size, algorithm.n_step * cfg.env.num_envs)
    changes = {"buffer_size": small, "learning_starts": 0}
    return cfg.model_copy(update={"algorithm": algorithm.model_copy(update=changes)})


def _one_step(algorithm: OffPolicy[Any]) -> dict[str, Tensor]:
    """What a step of every world stores."""
    env = algorithm.env
    obs = {group: value.clone() for group, value in env.obs.items()}
    action = random_actions(env.spec, 1)[0]
    result = env.step(action)
    steps = steps_of(obs, algorithm.state, action, result, algorithm.network.groups)
    return {name: value.clone() for name, value in steps.items()}


def _full(
    kind: type[Ring], algorithm: OffPolicy[Any], steps: dict[str, Tensor], capacity: int
) -> tuple[Ring, float]:
    """A full buffer, and by how many bytes it made the process (or the device) grow."""
    env, settings = algorithm.env, algorithm.settings
    random = ShardedRandom(0, "bench", range(1), env.device)
    before = _used_bytes(env.device)
    dtype = getattr(torch, settings.storage)
    options = {"n_step": settings.n_step, "gamma": settings.gamma, "dtype": dtype}
    buffer = kind(capacity, env.spec, algorithm.network.groups, random, **options)
    for _ in range(buffer.capacity // env.num_envs):
        buffer.add(steps)
    return buffer, _used_bytes(env.device) - before


def _used_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss
