"""Where a figure was measured: nothing is reported without it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench import USER_ENVIRONMENT
from pi_incubator.provenance import git_state, library_versions

SOURCE_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("torch", "tensordict", "torchrl", "triton", "numpy", "gymnasium"),
    *("stable-baselines3", "sbx-rl", "envpool", "brax", "flax"),
    *("mujoco", "mujoco-mjx", "mujoco-warp", "warp-lang", "jax", "jaxlib"),
)
NVIDIA_SMI_TIMEOUT_S = 20.0
LOAD_BEFORE = psutil.getloadavg()[0]  # read at import: later it would count what we measure
THREAD_SETTINGS = ("OMP_", "GOMP_", "MKL_", "OPENBLAS_", "XLA_", "NPROC")


def describe() -> dict[str, Any]:
    """Command, hardware, versions, commit and what the environment says of threads, as JSON types."""
    git = git_state()
    return {
        "command": shlex.join(["pi-bench", *sys.argv[1:]]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": available_cores(),
            "gpus": gpu_names(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "platform": platform.platform(),
            "load_average_1min": round(LOAD_BEFORE, 2),
        },
        "versions": {"python": platform.python_version(), **library_versions(PACKAGES)},
        "git": git._asdict() if git else None,
        "environment": {k: v for k, v in USER_ENVIRONMENT.items() if k.startswith(THREAD_SETTINGS)},
    }


def gpu_names() -> list[str]:
    """The model of every NVIDIA GPU; none where the driver does not answer."""
    return nvidia_smi("--query-gpu=name")


def nvidia_smi(*arguments: str) -> list[str]:
    """The lines that `nvidia-smi` answers, without headers and units; none where it is not there."""
    command = ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fresh_environment(**settings: str) -> dict[str, str]:
    """The user's environment for a new Python process that can import us, with `settings` added."""
    search_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), USER_ENVIRONMENT.get("PYTHONPATH")]))
    return USER_ENVIRONMENT | {"PYTHONPATH": search_path} | settings


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
