"""Reinforcement learning for robots, from simulator to robot.

import pi_incubator as pi
pi.run("configs/ppo/half_cheetah.yaml", ["env.num_envs=128"])
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pi_incubator.version import __version__

if TYPE_CHECKING:
    from pi_incubator.run import RunResult, run

# Before anything imports onnxruntime, which otherwise writes into the home and sends reports to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["RunResult", "__version__", "run"]


class _Package(ModuleType):
    """Imports `run` at first use: most modules of this package need neither it nor its dependencies."""

    @property
    def run(self) -> Any:
        """The function, also once the module `pi_incubator.run` has been imported."""
        return import_module("pi_incubator.run").run

    @run.setter
    def run(self, module: ModuleType) -> None:
        """The import system sets each submodule as an attribute; this one would replace the function."""

    @property
    def RunResult(self) -> Any:
        return import_module("pi_incubator.run").RunResult


sys.modules[__name__].__class__ = _Package
