"""Algorithms: a TorchRL loss and its optimizer step, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pi_incubator.registry import algorithms

if TYPE_CHECKING:
    from pi_incubator.algorithms._learner import Learner
    from pi_incubator.config import ExperimentConfig
    from pi_incubator.networks._actor_critic import ActorCritic


def make_algorithm(cfg: ExperimentConfig, policy: ActorCritic, compiled: bool = False) -> Learner:
    """The algorithm `cfg.algorithm.name`, optimizing `policy`."""
    return algorithms.get(cfg.algorithm.name)(cfg, policy, compiled)
