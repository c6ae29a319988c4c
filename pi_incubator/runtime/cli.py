"""`pi-runtime`: check, time and run an exported policy; convert its log."""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ._network import Array
from .bench import BenchResult, bench
from .bundle import read_bundle
from .contract import LARGEST
from .errors import PolicyRuntimeError, RuntimeBundleError
from .links import PolicyLink
from .log import FORMATS, NullLog, StepLog
from .loop import MAX_MISSES, Loop
from .policy import Policy
from .providers import PROVIDERS

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, and -1e-05 is a number."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def error(self, message: str) -> NoReturn:
        raise PolicyRuntimeError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str]) -> None:
    """Parse the command line and do it; see `pi-runtime --help`.

    Raises:
        PolicyRuntimeError: a mistake on the command line, or in what it names.
    """
    arguments = _parse(argv)
    arguments.command(arguments)


def cli() -> NoReturn:
    """Entry point of the console script: a user's mistake is one line and exit code 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        main(sys.argv[1:])
    except PolicyRuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _check(arguments: argparse.Namespace) -> None:
    bundle = read_bundle(arguments.bundle)
    contract = bundle.contract
    policy = Policy.of(bundle, provider=arguments.provider)
    terms = ", ".join(f"{term.name} {term.width}" for term in contract.terms)
    gates = contract.raw.get("gates") or {}
    _print_rows(
        {
            "policy": f"{contract.name} ({contract.network}, {contract.precision}), task {contract.task}",
            "control rate": f"{contract.control_hz:g} Hz",
            "observation": f"{contract.observation_width} values: {terms}",
            "commands": ", ".join(contract.commands) or "none",
            "joints": ", ".join(joint.name for joint in contract.joints),
            "states": ", ".join(f"{state.name} {state.width}" for state in contract.states) or "none",
            "runs on": policy.provider,
            "gates": "FAILED"
            if bundle.failed_gates
            else ("passed " + ", ".join(gates) if gates else "not run"),
        }
    )


def _bench(arguments: argparse.Namespace) -> None:
    bundle = read_bundle(arguments.bundle)
    policy = Policy.of(bundle, provider=arguments.provider, max_rate=arguments.max_rate)
    result = bench(
        policy,
        num_steps=arguments.steps,
        paced_s=arguments.seconds,
        realtime_priority=arguments.realtime,
    )
    contract = policy.contract
    print(f"{contract.name} on {policy.provider}, batch 1, control rate {contract.control_hz:g} Hz")
    _print_bench(result)
    if arguments.json:
        text = json.dumps(asdict(result), indent=2)
        try:
            arguments.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise PolicyRuntimeError(f"{arguments.json}: cannot be written ({error.strerror})") from None


def _print_bench(result: BenchResult) -> None:
    print(f"{'':26}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>10}  µs")
    for name, times in (
        (f"step, {result.num_steps} in a row", result.step_us),
        (f"step, {result.num_paced_steps} at the rate", result.paced_us),
        ("late to wake at the rate", result.wake_us),
    ):
        p50, p99, p999, longest = times
        print(f"{name:26}{p50:9.1f}{p99:9.1f}{p999:9.1f}{longest:10.1f}")
    print(f"deadline misses: {result.deadline_misses} of {result.num_paced_steps}")
    if result.num_flagged:
        counts = f"{result.num_flagged} of {result.num_steps}"
        print(f"flagged steps: {counts}, whose times are not those of a normal step")


def _run(arguments: argparse.Namespace) -> None:
    bundle = read_bundle(arguments.bundle)
    if bundle.failed_gates and not arguments.allow_failed_gates:
        fix = "export a better one, or give --allow-failed-gates in a simulator"
        raise RuntimeBundleError(f"{arguments.bundle}: failed its gates and is not for a robot; {fix}")
    policy = Policy.of(bundle, provider=arguments.provider, max_rate=arguments.max_rate)
    if arguments.start_target:
        policy.reset(_start_target(arguments.start_target, policy))
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop.append(received))
    rows: dict[str, object] = {}
    try:
        # The log's folder comes last: where the link cannot be opened, none is left in a restart's way.
        with (
            closing(PolicyLink(arguments.link, policy.contract)) as link,
            closing(_log(arguments, policy)) as log,
        ):
            print(f"ready: {policy.contract.name} at {arguments.link}", flush=True)
            report = Loop(policy, link, log, max_misses=arguments.max_misses).run(
                follow_link=arguments.follow,
                realtime_priority=arguments.realtime,
                should_stop=lambda: bool(stop),
                max_steps=arguments.steps,
            )
            rows = {**asdict(report), **asdict(link.counts)}
    finally:  # also where the log could not be written, which its end reports
        if rows:
            _print_rows(rows | {"log_dropped": log.dropped})


def _start_target(values: list[float], policy: Policy) -> Array:
    joints = policy.contract.joints
    if len(values) != len(joints):
        fix = "give one for each joint of the contract"
        raise PolicyRuntimeError(f"--start-target: {len(values)} numbers, not {len(joints)}; {fix}")
    for value, joint in zip(values, joints, strict=True):
        low = -LARGEST if joint.target_low is None else joint.target_low
        high = LARGEST if joint.target_high is None else joint.target_high
        if not low <= value <= high:
            problem = f"{value:g} is not from {low:g} to {high:g}"
            raise PolicyRuntimeError(
                f"--start-target: {joint.name}: {problem}; give it in the contract's unit"
            )
    if not policy.limits_rates:
        problem = "nothing limits how fast targets change, so it would have no effect"
        raise PolicyRuntimeError(f"--start-target: {problem}; give --max-rate too")
    return np.array(values, np.float32)


def _log(arguments: argparse.Namespace, policy: Policy) -> StepLog | NullLog:
    if arguments.log is None:
        return NullLog()
    return StepLog(arguments.log, policy.contract, format=arguments.log_format)


def _to_parquet(arguments: argparse.Namespace) -> None:
    from ._log_files import convert_to_parquet

    out = arguments.out or arguments.folder / "steps.parquet"
    num_steps = convert_to_parquet(arguments.folder, out)
    print(f"{out}: {num_steps} steps")


def _print_rows(rows: dict[str, object]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="pi-runtime", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = _add_command(commands, "check", _check, "read a bundle, check all of it, and say what it is")
    times = _add_command(commands, "bench", _bench, "print a step's latency and the deadline misses")
    run = _add_command(commands, "run", _run, "run against a robot or a simulator in another process")
    for command in (check, times, run):
        command.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder or .tar.gz")
        command.add_argument("--provider", choices=PROVIDERS, default="auto", help="default: auto")
    for command in (times, run):
        command.add_argument(
            "--max-rate",
            type=_positive,
            metavar="X",
            help="of every target, per second; default: the contract's",
        )
        command.add_argument("--realtime", type=_whole, metavar="PRIORITY", help="SCHED_FIFO, 1 to 99")
    times.add_argument("--steps", type=_whole, default=20_000, metavar="N", help="in a row; default: 20000")
    times.add_argument("--seconds", type=_positive, default=5.0, help="at the control rate; default: 5")
    times.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON")
    _add_run_options(run)
    log = commands.add_parser("log", help="work with the log of a run")
    log_commands = log.add_subparsers(required=True, metavar="COMMAND")
    convert = _add_command(
        log_commands, "to-parquet", _to_parquet, "join all chunks of a log as one Parquet file"
    )
    convert.add_argument("folder", type=Path, metavar="LOG", help="folder that run wrote")
    convert.add_argument("--out", type=Path, metavar="FILE", help="default: LOG/steps.parquet")
    return parser.parse_args(argv)


def _add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("--link", required=True, metavar="URL", help="udp://HOST:PORT or shm:///NAME")
    run.add_argument(
        "--follow", action="store_true", help="answer each observation when it comes, not at the control rate"
    )
    run.add_argument(
        "--max-misses",
        type=_whole,
        default=MAX_MISSES,
        metavar="K",
        help=f"in a row until the safe target; default: {MAX_MISSES}",
    )
    run.add_argument("--steps", type=_whole, metavar="N", help="then end; default: until SIGINT or SIGTERM")
    run.add_argument(
        "--start-target",
        type=float,
        nargs="+",
        metavar="X",
        help="that the robot holds now, from which rate limits count; default: the safe target",
    )
    run.add_argument("--log", type=Path, metavar="FOLDER", help="keep every step there")
    run.add_argument(
        "--log-format", choices=list(FORMATS), help="default: parquet where pyarrow is installed"
    )
    run.add_argument("--allow-failed-gates", action="store_true", help="run what failed a gate")


def _add_command(commands: argparse._SubParsersAction, name: str, command: object, text: str) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= (number := int(text)) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
