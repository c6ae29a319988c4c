"""Where a figure was measured: nothing is reported without it."""

from __future__ import annotations

import os
import platform
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
THREAD_SETTINGS = ("OMP_", "GOMP_", "MKL_", "OPENBLAS_", "XLA_", "NPROC")


def describe() -> dict[str, Any]:
    """Hardware, versions, commit and what the environment says about threads, as JSON types."""
    git = git_state()
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": available_cores(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "platform": platform.platform(),
            "load_average_1min": round(psutil.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **library_versions(PACKAGES)},
        "git": git._asdict() if git else None,
        "environment": {k: v for k, v in USER_ENVIRONMENT.items() if k.startswith(THREAD_SETTINGS)},
    }


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
