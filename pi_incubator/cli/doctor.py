"""`pi-doctor`: what this machine has, what works on it, and the command that mends what does not."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs_gpu.physics import BACKENDS
from pi_incubator.cli._main import run
from pi_incubator.config.check import REQUIREMENTS
from pi_incubator.errors import UserError
from pi_incubator.provenance import git_state, library_versions

TIMEOUT_S = 180.0  # on a busy machine the first build of a backend's kernels takes a minute
NUM_WORKERS = 2
SOURCE_ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("pi_incubator", "torch", "tensordict", "torchrl", "triton", "numpy", "safetensors", "pydantic"),
    *("mujoco", "mujoco-mjx", "mujoco-warp", "warp-lang", "newton", "jax", "jaxlib"),
    *("mlflow", "ray", "metaflow", "onnx", "onnxruntime", "onnxscript", "tensorrt"),
)


@dataclass(frozen=True)
class Probe:
    """Something to try."""

    name: str
    call: str
    """A call of a function in `_probes`, as Python source."""
    fix: str
    """What to do when it does not work."""


@dataclass(frozen=True)
class Finding:
    """How a probe went."""

    name: str
    works: bool
    detail: str
    """What it did, or why it does not work."""
    fix: str
    """Empty when it works."""
    wall_s: float


@dataclass(frozen=True)
class Report:
    """Everything that the doctor found; `--json` writes it under these names."""

    system: dict[str, str]
    packages: dict[str, str | None]
    """Installed versions; None for what is not installed."""
    findings: list[Finding]
    warnings: list[str]


def probes() -> list[Probe]:
    """What is tried."""
    torch_fix = "install torch for CUDA: https://pytorch.org/get-started"
    gpu_fix = torch_fix if _gpu_names() else "nothing: the CPU serves"
    backends = [
        Probe(f"physics {name}", f"physics({name!r})", f"pip install {REQUIREMENTS[name][1]}")
        for name in BACKENDS.names()
    ]
    return [
        *backends,
        Probe("GPU", "gpu()", gpu_fix),
        Probe("torch.compile", "compiler()", "apt-get install g++, or run with compute.compile=off"),
        Probe("rendering", "rendering()", "apt-get install libegl1 libgl1, and unset MUJOCO_GL"),
        Probe("ONNX Runtime", "onnx_runtime()", "pip install onnx onnxruntime"),
    ]


def attempt(probe: Probe, timeout_s: float = TIMEOUT_S) -> Finding:
    """Run a probe in a process of its own, which may crash or hang without harm."""
    search_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", f"from pi_incubator.cli import _probes; _probes.{probe.call}"]
    environment = os.environ | {"PYTHONPATH": search_path}
    began_s = time.perf_counter()
    # Into files: a compiler that outlives the killed probe would keep pipes open, and us waiting.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(command, env=environment, stdout=printed, stderr=errors, timeout=timeout_s)
            works = done.returncode == 0
            detail = _last_line(printed if works else errors)
            if done.returncode < 0:
                detail = f"crashed with {signal.Signals(-done.returncode).name}"
        except subprocess.TimeoutExpired:
            works, detail = False, f"did not end within {timeout_s:.0f} s"
    wall_s = round(time.perf_counter() - began_s, 1)
    return Finding(probe.name, works, detail, "" if works else probe.fix, wall_s)


def examine() -> Report:
    """Look at everything; takes as long as the probes do, up to a minute where kernels are built."""
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        findings = list(pool.map(attempt, probes()))
    return Report(_system(), library_versions(PACKAGES), findings, _warnings())


def main(argv: Sequence[str]) -> None:
    """Print the report, and write it as JSON where `--json FILE` asks for it.

    Raises:
        UserError: that file cannot be written.
    """
    parser = argparse.ArgumentParser(prog="pi-doctor", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    arguments = parser.parse_args(argv)
    console = Console()
    with console.status("trying what works here ..."):
        report = examine()
    _show(report, console)
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            problem = f"{arguments.json}: cannot be written ({error.strerror})"
            raise UserError(f"{problem}; name a file in a folder you can write to") from None


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    return (file.read().strip().splitlines() or [""])[-1].strip()


def _system() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    git = git_state()
    return {
        "operating system": platform.platform(),
        "Python": f"{platform.python_version()} ({sys.executable})",
        "CPU": f"{cores} of {os.cpu_count()} cores, {platform.machine()}",
        "memory": f"{memory_gib:.1f} GiB",
        "GPU": _gpu_names() or "none (nvidia-smi does not answer)",
        "C++ compiler": shutil.which("g++") or shutil.which("clang++") or "none",
        "MUJOCO_GL": os.environ.get("MUJOCO_GL", "unset"),
        "source": f"git {git.commit}{' with changes' if git.dirty else ''}" if git else "not a git checkout",
    }


def _gpu_names() -> str | None:
    """Model, memory and driver of every NVIDIA GPU; None where the driver does not answer."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(done.stdout.strip().splitlines()) or None


def _warnings() -> list[str]:
    if library_versions(["kernels"])["kernels"] is None:
        return []
    return [
        "an unrelated package named 'kernels' is installed: it and our folder of that name hide each other; "
        "pip uninstall kernels"
    ]


def _show(report: Report, console: Console) -> None:
    system = Table("machine", "")
    for name, value in report.system.items():
        system.add_row(name, escape(value))
    packages = Table("package", "version")
    for name, version in report.packages.items():
        packages.add_row(name, version or "[dim]not installed")
    tried = Table("tried", "", "what happened", "what to do", "s")
    for finding in report.findings:
        mark = "[green]works" if finding.works else "[red]no"
        detail, fix = escape(finding.detail), escape(finding.fix)  # pip's extras look like markup
        tried.add_row(finding.name, mark, detail, fix, f"{finding.wall_s:.1f}")
    console.print(system, packages, tried)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {warning}")


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
