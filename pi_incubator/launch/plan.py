"""What a launcher starts, as plain values that travel to the nodes of a cluster."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pi_incubator.config import ExperimentConfig
from pi_incubator.version import __version__

PACKAGES = ("torch", "ray", "mujoco")
"""Whose versions must be the same on all nodes, beside those of Python and of this package."""


@dataclass(frozen=True)
class Plan:
    """The ranks of one training, and what each of them needs."""

    config: str
    """The experiment file, as given."""
    overrides: tuple[str, ...]
    """`section.key=value`, over the file's settings."""
    num_workers: int
    """Ranks, each a process."""
    cpus_per_worker: float
    gpus_per_worker: float | None
    """None is one where the cluster has enough GPUs and the run may use them, otherwise none."""
    max_restarts: int
    address: str | None
    """Of the cluster; None starts one on this machine."""
    directory: str
    """Where the ranks run; relative paths in the settings begin there."""
    may_use_gpus: bool
    begins_anew: bool
    """Whether the command sets aside what an earlier training left (`checkpoint.resume = never`)."""

    def command(self, goes_on: bool) -> list[str]:
        """What starts one rank; `goes_on` after an attempt that ended early."""
        resume = ["checkpoint.resume=auto"] if goes_on and self.begins_anew else []
        program = [sys.executable, "-m", "pi_incubator.cli.train", "--config", self.config]
        return [*program, *self.overrides, *resume]

    def to_json(self) -> str:
        """As text, for the command line of another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What `to_json` gave."""
        values = json.loads(text)
        return cls(**{**values, "overrides": tuple(values["overrides"])})


def make_plan(cfg: ExperimentConfig, config: str, overrides: Sequence[str]) -> Plan:
    """The plan of an experiment.

    Args:
        cfg: its settings.
        config: the file that they come from.
        overrides: over the file's settings.
    """
    compute = cfg.compute
    return Plan(
        config=config,
        overrides=tuple(overrides),
        num_workers=compute.num_workers,
        cpus_per_worker=compute.cpus_per_worker,
        gpus_per_worker=compute.gpus_per_worker,
        max_restarts=compute.max_restarts,
        address=compute.cluster or os.environ.get("RAY_ADDRESS"),
        directory=os.getcwd(),
        begins_anew=cfg.checkpoint.resume == "never",
        may_use_gpus=compute.device != "cpu" and cfg.env.backend != "mujoco",
    )


def versions() -> dict[str, str]:
    """What must be the same on all nodes: name -> version, without importing anything large."""
    found: dict[str, Any] = {"python": platform.python_version(), "pi_incubator": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
