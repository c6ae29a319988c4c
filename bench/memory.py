"""Memory of a training run in a fresh process: its peak with all its children, and whether it grows.

Pages that processes share are counted once (PSS; where the system does not tell it, resident memory, which
counts them in each process). Sampled, so a peak that lasts for less than the interval can be missed. Growth
is the slope of a straight line through the resident memory over the iterations, without the first fifth and
what follows training: the share of pages that others map too would change with them. On a GPU all that is
used of the device is sampled too, whoever uses it. 10,000 iterations:

    pi-bench memory --config configs/ppo/cartpole_balance.yaml --iterations 10000 --plot memory.png \\
        env.num_envs=16 algorithm.horizon=16 algorithm.minibatch_size=128
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from bench._machine import fresh_environment, nvidia_smi
from bench._output import add_output_arguments, write_outputs
from bench._result import Curve, Metric, make_curve, make_metric, make_result
from bench._train_plan import settle
from pi_incubator.cli._parser import count
from pi_incubator.config import ExperimentConfig, check_names, load_with_sources
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import Cell, print_table
from pi_incubator.provenance import flatten
from pi_incubator.run_folder import RunFolder

INTERVAL_S, DEVICE_INTERVAL_S = 0.1, 1.0
BYTES_PER_GB, BYTES_PER_MB = 1e9, 1e6
BYTES_PER_MIB = 2**20  # nvidia-smi's unit
WARM_UP = 0.2
"""Share of the iterations before memory must be flat: allocators and compilers settle."""
MIN_POINTS = 10
LAST_LINE_BYTES = 2**16
HOST, DEVICE = "memory", "device memory"
LINES = {HOST: "resident", DEVICE: "device"}


class Sample(NamedTuple):
    """What a run used at one moment."""

    iteration: int
    """Iterations that it had logged."""
    num_bytes: int
    """Shared pages once."""
    resident_bytes: int
    num_processes: int
    device_bytes: int | None
    """Of the whole device; None where there is none, and between two looks at it."""


class Growth(NamedTuple):
    """A straight line through memory over iterations."""

    mb_per_1000: float
    iterations: tuple[float, float]
    mb: tuple[float, float]
    """At those two ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--config", required=True, help="experiment file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    parser.add_argument("--iterations", type=count, default=10, help="length of the run (default: 10)")
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Train, watch, print the table and write the result.

    Raises:
        UserError: the config is wrong, or the run failed.
    """
    cfg, sources = load_with_sources(arguments.config, arguments.overrides)
    check_names(cfg, sources)
    cfg = settle(cfg)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*arguments.overrides, *_shortened(cfg, arguments.iterations, folder)]
        samples = watch_training(arguments.config, overrides, Path(folder, "output.txt"))
    metrics, curves = judge(samples, arguments.iterations)
    row: dict[str, Cell] = {f"{name} {one['unit']}": one["median"] for name, one in metrics.items()}
    row["processes"] = max(sample.num_processes for sample in samples)
    title = f"memory of {arguments.iterations} iterations and what follows training"
    print_table({cfg.experiment.name: row}, title=title, first_column="run")
    settings = {"config": flatten(cfg), "iterations": arguments.iterations}
    missing = _not_measured(metrics)
    write_outputs(
        make_result(
            "memory", settings, metrics, curves=curves, processes=row["processes"], not_measured=missing
        ),
        arguments,
    )


def watch_training(config: str, overrides: list[str], output: Path) -> list[Sample]:
    """Run `pi-train`, sampling its memory until it ends.

    Raises:
        UserError: the run failed; the message is the last line that it printed to `output`.
    """
    from pi_incubator.compute import plan_compute

    cfg, _ = load_with_sources(config, overrides)
    log, on_cuda = RunFolder(cfg).metrics, plan_compute(cfg).device.type == "cuda"
    command = [sys.executable, "-m", "pi_incubator.cli.train", "--config", config, *overrides]
    with output.open("w") as file:
        process = psutil.Popen(command, env=fresh_environment(), stdout=file, stderr=subprocess.STDOUT)
    samples: list[Sample] = []
    look_again_s = 0.0
    try:
        while process.poll() is None:
            looks = on_cuda and time.monotonic() >= look_again_s
            device = _device_bytes() if looks else None
            look_again_s = time.monotonic() + DEVICE_INTERVAL_S if looks else look_again_s
            shares, resident = zip(*_sizes_bytes(process), strict=True)
            samples.append(Sample(_iterations_logged(log), sum(shares), sum(resident), len(shares), device))
            time.sleep(INTERVAL_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        last_line = output.read_text().strip().rpartition("\n")[2]
        raise UserError(f"the run failed: {last_line or f'it ended with {process.returncode}'}")
    return samples


def judge(samples: list[Sample], num_iterations: int) -> tuple[dict[str, Metric], dict[str, Curve]]:
    """Peaks, growth and curves of a run of `num_iterations`.

    Growth of memory that does not grow is about zero, of either sign: it is told, and peaks are judged.
    """
    metrics: dict[str, Metric] = {}
    lines: dict[str, tuple[list[float], list[float]]] = {}
    on_device = [sample for sample in samples if sample.device_bytes is not None]
    for name, watched, peak, flat in (
        (HOST, samples, "num_bytes", "resident_bytes"),
        (DEVICE, on_device, "device_bytes", "device_bytes"),
    ):
        if not watched:
            continue
        peak_gb = max(getattr(sample, peak) for sample in watched) / BYTES_PER_GB
        metrics[f"{name}: peak"] = make_metric([peak_gb], "GB", "lower")
        mb: dict[int, float] = {}
        for sample in watched:
            if sample.iteration < num_iterations:  # training is going on
                used = getattr(sample, flat) / BYTES_PER_MB
                mb[sample.iteration] = max(mb.get(sample.iteration, 0.0), used)
        lines[LINES[name]] = (list(map(float, mb)), list(mb.values()))
        if growth := fit(mb, WARM_UP * num_iterations):
            unit = "MB/1000 iterations"
            metrics[f"{name}: growth"] = make_metric([growth.mb_per_1000], unit, "")
            label = f"fit: {growth.mb_per_1000:+.2f} {unit}"
            lines[label] = (list(growth.iterations), list(growth.mb))
    return metrics, {"Memory while training": make_curve("iteration", "MB", lines)}


def fit(mb: dict[int, float], warm_up: float) -> Growth | None:
    """The least-squares line through what `mb` holds after iteration `warm_up`; None for too few points."""
    points = [(iteration, size) for iteration, size in mb.items() if iteration >= max(1.0, warm_up)]
    if len(points) < MIN_POINTS:
        return None
    iterations, sizes = np.array(points, dtype=np.float64).T
    middle = iterations.mean()
    slope, level = np.polyfit(iterations - middle, sizes, 1)
    ends = (float(iterations[0]), float(iterations[-1]))
    at_ends = tuple(float(level + slope * (end - middle)) for end in ends)
    return Growth(1000.0 * float(slope), ends, (at_ends[0], at_ends[1]))


def _not_measured(metrics: dict[str, Metric]) -> dict[str, str]:
    reasons = {
        f"{HOST}: growth": f"fewer than {MIN_POINTS} logs after warm-up: more --iterations are needed",
        f"{DEVICE}: peak": "no training on a CUDA device",
        f"{DEVICE}: growth": f"no training on a CUDA device, or fewer than {MIN_POINTS} looks at it",
    }
    return {name: reason for name, reason in reasons.items() if name not in metrics}


def _iterations_logged(log: Path) -> int:
    """How many iterations a run has taken when it last wrote to its log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_LINE_BYTES))
            complete = file.read().rpartition(b"\n")[0]
        return 1 + int(json.loads(complete.rpartition(b"\n")[2])["iteration"])
    except (OSError, ValueError, KeyError):  # not there yet, or nothing in it
        return 0


def _device_bytes() -> int | None:
    """What is used of the first visible GPU, by everyone."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    answer = nvidia_smi("--query-gpu=memory.used", f"--id={first}")
    return int(answer[0]) * BYTES_PER_MIB if answer and answer[0].isdecimal() else None


def _shortened(cfg: ExperimentConfig, iterations: int, folder: str) -> list[str]:
    """Overrides that make a run short and tidy, but let it use memory as the long one does."""
    from pi_incubator.compute import plan_compute

    # Left to itself, a short run would not compile.
    compiled = "on" if plan_compute(cfg).compiled else "off"
    return [
        f"env.num_envs={cfg.env.num_envs}",
        f"training.total_steps={iterations * cfg.steps_per_iteration}",
        f"compute.compile={compiled}",
        f"experiment.output_dir={folder}",
        "tracking.uri=null",
        "checkpoint.resume=auto",
    ]


def _sizes_bytes(process: psutil.Process) -> Iterator[tuple[int, int]]:
    """Proportional and resident memory of `process` and of each of its descendants, while they live."""
    members = [process]
    with contextlib.suppress(psutil.Error):
        members += process.children(recursive=True)
    for member in members:
        with contextlib.suppress(psutil.Error):
            memory = member.memory_full_info()
            yield getattr(memory, "pss", memory.rss), memory.rss
