"""Peak memory of a short training run in a fresh process, with all its children.

Pages that processes share are counted once (PSS; where the system does not tell it, resident memory, which
counts them in each process). Sampled, so a peak that lasts for less than the interval can be missed.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench._machine import describe, fresh_environment
from bench._train_plan import settle
from pi_incubator.cli._parser import count, output_file
from pi_incubator.config import ExperimentConfig, check_names, load_with_sources
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table, write_json
from pi_incubator.provenance import flatten

INTERVAL_S = 0.1
BYTES_PER_GB = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--config", required=True, help="experiment file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    parser.add_argument("--iterations", type=count, default=10, help="length of the run (default: 10)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything there")


def main(arguments: argparse.Namespace) -> None:
    """Train, watch, print the table and write the JSON.

    Raises:
        UserError: the config is wrong, or the run failed.
    """
    cfg, sources = load_with_sources(arguments.config, arguments.overrides)
    check_names(cfg, sources)
    cfg = settle(cfg)
    report = describe()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*arguments.overrides, *_shortened(cfg, arguments.iterations, folder)]
        peak = watch_training(arguments.config, overrides, Path(folder, "output.txt"))
    title = f"peak memory of {arguments.iterations} iterations and what follows training"
    print_table({cfg.experiment.name: peak}, title=title, first_column="run")
    if arguments.json:
        write_json(
            report | {"config": flatten(cfg), "iterations": arguments.iterations, **peak}, arguments.json
        )


def watch_training(config: str, overrides: list[str], output: Path) -> dict[str, Any]:
    """Run `pi-train`, sampling its memory until it ends.

    Raises:
        UserError: the run failed; the message is the last line that it printed to `output`.
    """
    command = [sys.executable, "-m", "pi_incubator.cli.train", "--config", config, *overrides]
    with output.open("w") as file:
        process = psutil.Popen(command, env=fresh_environment(), stdout=file, stderr=subprocess.STDOUT)
    peak_bytes = num_processes = 0
    try:
        while process.poll() is None:
            sizes = list(_sizes_bytes(process))
            peak_bytes, num_processes = max((peak_bytes, num_processes), (sum(sizes), len(sizes)))
            time.sleep(INTERVAL_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        last_line = output.read_text().strip().rpartition("\n")[2]
        raise UserError(f"the run failed: {last_line or f'it ended with {process.returncode}'}")
    return {"GB": peak_bytes / BYTES_PER_GB, "processes": num_processes}


def _shortened(cfg: ExperimentConfig, iterations: int, folder: str) -> list[str]:
    """Overrides that make a run short and tidy, but let it use memory as the long one does."""
    from pi_incubator.compute import plan_compute

    # Left to itself, a short run would not compile.
    compiled = "on" if plan_compute(cfg).compiled else "off"
    return [
        f"env.num_envs={cfg.env.num_envs}",
        f"training.total_steps={iterations * cfg.batch_size}",
        f"compute.compile={compiled}",
        f"experiment.output_dir={folder}",
        "tracking.uri=null",
        "checkpoint.resume=auto",
    ]


def _sizes_bytes(process: psutil.Process) -> Iterator[int]:
    """The memory of `process` and of each of its descendants, as long as they live."""
    members = [process]
    with contextlib.suppress(psutil.Error):
        members += process.children(recursive=True)
    for member in members:
        with contextlib.suppress(psutil.Error):
            memory = member.memory_full_info()
            yield getattr(memory, "pss", memory.rss)
