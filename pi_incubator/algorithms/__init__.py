"""Algorithms: a loss and its optimizer step, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pi_incubator.registry import algorithms

if TYPE_CHECKING:
    from envs_gpu.vec_env import EnvSpec
    from pi_incubator.config import ExperimentConfig
    from pi_incubator.policies.policy import Policy
    from pi_incubator.training.algorithm import Algorithm


def algorithm_class(cfg: ExperimentConfig) -> type[Algorithm[Any]]:
    """The class of `cfg.algorithm.name`."""
    found: type[Algorithm[Any]] = algorithms.get(cfg.algorithm.name)
    return found


def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> Policy:
    """The untrained policy of `cfg` for the env that `spec` describes, on its device."""
    return algorithm_class(cfg).make_policy(cfg, spec)
