"""What every gate is given, and what it gives back.

Letters: D width of the readings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from envs_gpu.interface import PolicyInterface
from envs_gpu.sim_env import SimEnv
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.record import Recording, record
from pi_incubator.envs import evaluation_seed
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.policies.policy import Policy
from pi_incubator.run_folder import RunFolder
from pi_incubator.runtime import Bundle

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Result:
    """What a gate found out."""

    passed: bool
    value: float
    limit: float
    """What `value` was held against."""
    unit: str
    details: Mapping[str, Any] = field(default_factory=dict)
    """Other numbers worth keeping, JSON types."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files that go into the bundle."""

    def entry(self) -> dict[str, Any]:
        """As the contract holds it; JSON has no number for a value that is not finite."""
        entry = {
            "passed": self.passed,
            "value": self.value,
            "limit": self.limit,
            "unit": self.unit,
            **self.details,
        }
        return {name: None if _is_odd(value) else value for name, value in entry.items()}


@dataclass(frozen=True)
class Candidate:
    """A bundle on trial, and the run that it comes from."""

    bundle: Bundle
    cfg: ExperimentConfig
    """The run's."""
    folder: RunFolder
    env: SimEnv
    """The run's evaluation worlds, in its own backend."""
    policy: Policy
    """The run's, in torch."""
    num_episodes: int
    """Over which returns are measured."""
    recorded: Recording | None = None
    """What the policy has met and done in `env`, where it is known already."""

    @property
    def path(self) -> Path:
        return self.bundle.path

    @cached_property
    def interface(self) -> PolicyInterface:
        return self.env.interface()

    @cached_property
    def recording(self) -> Recording:
        """What the policy in torch has met and done."""
        if self.recorded is not None:
            return self.recorded
        count = self.cfg.deployment.num_check_observations
        return record(self.env, self.policy, count, self.seed)

    @cached_property
    def reference(self) -> float:
        """Mean return of the policy in torch, in the simulator that trained it: what `pi-eval` says."""
        evaluation = evaluate(self.env, self.policy, self.num_episodes, self.seed)
        return evaluation.summary()["return"]["mean"]

    @property
    def seed(self) -> int:
        """Of the evaluation's worlds."""
        return evaluation_seed(self.cfg)

    @property
    def cfg_in_c(self) -> ExperimentConfig:
        """The run's config with C MuJoCo as its simulator."""
        return self.cfg.model_copy(update={"env": self.cfg.env.model_copy(update={"backend": "mujoco"})})


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def kept_share(value: float, reference: float) -> float:
    """How much of the return `reference` is left in `value`: 1 for all of it, 0.9 for a tenth less.

    A loss counts against the size of the reference, so that returns below zero can be compared too.
    """
    if reference == 0:
        return 1.0 if value >= 0 else -math.inf
    return 1 + (value - reference) / abs(reference)
