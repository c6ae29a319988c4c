"""Reinforcement learning for robots, from simulator to robot.

import pi_incubator as pi
pi.run("configs/half_cheetah.yaml", ["env.num_envs=128"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pi_incubator.version import __version__

if TYPE_CHECKING:
    from pi_incubator.run import RunResult, run

__all__ = ["RunResult", "__version__", "run"]


def __getattr__(name: str) -> Any:
    """Import `run` at first use: most modules of this package need neither it nor its dependencies."""
    if name in ("run", "RunResult"):
        from importlib import import_module

        return getattr(import_module("pi_incubator.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
