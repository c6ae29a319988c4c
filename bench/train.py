"""Environment steps per second, simulation and learning together, beside peers and bare physics.

The loops take turns in one run, each in a process of its own that sleeps between its turns; building and
compiling are not measured. Ratios are paired: each compares two turns of the same round.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench import _time_to_return
from bench._loops import sb3
from bench._loops._off_policy import is_off_policy
from bench._output import add_output_arguments, write_outputs
from bench._result import make_result
from bench._train_measure import as_json, measure, metrics_of
from bench._train_plan import (
    ALL,
    DEFAULT_PEER,
    OURS,
    PEERS,
    Entry,
    chosen_peers,
    comparisons,
    lacking,
    load,
    named_peers,
    peers_of,
    settings_of,
    with_best_sizes,
)
from bench._train_print import print_measurements
from bench._worker import Budget
from pi_incubator.cli._parser import count
from pi_incubator.errors import UserError
from pi_incubator.provenance import flatten

# With every peer there are many turns: shorter ones, so that the whole stays under ten minutes on two cores.
ROUNDS, SECONDS = 3, 20
ROUNDS_OF_ALL, SECONDS_OF_ALL = 2, 4
PROFILED_ITERATIONS = 10
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    default = "configs/experiment_config_baseline.yaml"
    parser.add_argument("--config", default=default, help="experiment file (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    names = ", ".join(PEERS)
    default_help = f"{DEFAULT_PEER}; all where the algorithm learns off-policy"
    peers_help = f"whom to compare with: {names}, all or none (default: {default_help})"
    parser.add_argument("--peer", nargs="+", default=[], metavar="NAME", help=peers_help)
    beside_help = "another checkout of this project, which takes turns with this one"
    parser.add_argument("--beside", type=Path, metavar="DIR", help=beside_help)
    parser.add_argument("--identical", action="store_true", help="only the comparison with the same settings")
    sweep_help = "peers also at their fastest number of worlds (on with --peer all)"
    parser.add_argument("--sweep", action="store_true", help=sweep_help)
    parser.add_argument(
        "--sb3-vec", default="dummy", choices=sb3.VEC_ENVS, help="SB3's envs where it has many"
    )
    rounds_help = f"turns of each loop (default: {ROUNDS}; {ROUNDS_OF_ALL} with --peer all)"
    parser.add_argument("--rounds", type=count, help=rounds_help)
    length = parser.add_mutually_exclusive_group()
    seconds_help = f"length of a turn (default: {SECONDS}; {SECONDS_OF_ALL} with --peer all)"
    length.add_argument("--seconds", type=count, help=seconds_help)
    length.add_argument("--iterations", type=count, help="length of a turn, in iterations of its loop")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--time-to-return", type=float, metavar="R", help="instead: the time until training has it"
    )
    mode.add_argument("--profile", type=Path, metavar="DIR", help="instead: where our iteration's time goes")
    limit_help = "with --time-to-return: time of each loop (default: %(default)s)"
    parser.add_argument("--limit-s", type=count, default=1800, help=limit_help)
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the table and write the result.

    Raises:
        UserError: the config or a peer cannot be measured here.
    """
    # argparse gives overrides that follow `--peer NAME` to --peer.
    arguments.overrides = [text for text in arguments.peer if "=" in text] + arguments.overrides
    arguments.peer = [text for text in arguments.peer if "=" not in text]
    if arguments.profile:
        result = _profile(arguments)
    elif arguments.time_to_return is not None:
        result = _time_to(arguments)
    else:
        result = _compare(arguments)
    write_outputs(result, arguments)


def _compare(arguments: argparse.Namespace) -> Result:
    """Speeds of all loops, in alternating turns."""
    planned = comparisons(arguments)
    cfg = planned[0].cfg
    everyone = ALL in named_peers(arguments, cfg)
    rounds = arguments.rounds or (ROUNDS_OF_ALL if everyone else ROUNDS)
    seconds = arguments.seconds or (SECONDS_OF_ALL if everyone else SECONDS)
    budget = Budget(iterations=arguments.iterations) if arguments.iterations else Budget(seconds)
    result = make_result("train", settings_of(planned), {})  # the load before, not that of our own
    if (everyone or arguments.sweep) and not is_off_policy(cfg):
        planned = [with_best_sizes(one) if one.name == "own" else one for one in planned]
    measurements = [measure(one, rounds, budget) for one in planned]
    print_measurements(measurements)
    metrics = {name: metric for one in measurements for name, metric in metrics_of(one).items()}
    return result | {"metrics": metrics, "comparisons": {m.comparison.name: as_json(m) for m in measurements}}


def _time_to(arguments: argparse.Namespace) -> Result:
    """Seconds until the return is there, ours at the config and a peer at its defaults."""
    cfg, target = load(arguments), arguments.time_to_return
    names, left_out = named_peers(arguments, cfg), {}
    entries = {OURS: Entry(OURS, cfg.model_dump(mode="json"))}
    for name in chosen_peers(names, cfg):
        if reason := lacking(name, cfg, lenient=ALL in names):
            left_out[name] = reason
            continue
        default = PEERS[name].default
        if not PEERS[name].tells_returns or default is None:
            tellers = ", ".join(name for name in peers_of(cfg) if PEERS[name].tells_returns)
            raise UserError(
                f"--peer {name}: its returns are not read; with --time-to-return take of: {tellers}"
            )
        entries[name] = Entry(name, default(cfg))
    result = make_result("train", {"config": flatten(cfg), "time_to_return": target}, {})
    done, facts = _time_to_return.race(entries, target, arguments.limit_s, arguments.seconds or SECONDS)
    _time_to_return.print_race(done, target, left_out)
    progress = {label: vars(one) for label, one in done.items()}
    return result | {
        "metrics": _time_to_return.metrics_of(done, target),
        "progress": progress,
        "left_out": left_out,
        "facts": facts,
        "limit_s": arguments.limit_s,
    }


def _profile(arguments: argparse.Namespace) -> Result:
    """Where the time of our iterations goes."""
    from bench._train_profile import profile_training  # imports torch, which the comparisons leave to others

    cfg = load(arguments)
    result = make_result("train", {"config": flatten(cfg), "profile": True}, {})
    num_iterations = arguments.iterations or PROFILED_ITERATIONS
    return result | {"metrics": profile_training(cfg, arguments.profile, num_iterations)}
