"""Perceptrons whose policy sees what no robot can measure: a teacher for `pi-distill`, not for a robot."""

from __future__ import annotations

from pi_incubator.networks.mlp import MLP
from pi_incubator.registry import network


@network("mlp_privileged")
class PrivilegedMLP(MLP):
    """Policy and critics read the group of the critic (Lee et al. 2020)."""

    @property
    def actor_group(self) -> str:
        return self.critic_group
