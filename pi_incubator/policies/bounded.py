"""Policies whose actions lie within the env's limits, and are learned in units of them.

Letters: N worlds, B samples, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.layers.network import Network
from pi_incubator.policies.policy import Policy


class BoundedPolicy(Policy):
    """A policy that acts between -1 and 1, which are the env's limits.

    Args:
        settings: normalization.
        network: builds encoder and head.
        spec: the env's observation groups and action limits.
        num_outputs: of the head.

    Raises:
        SettingError: an action has no limits.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, settings: NetworkSettings, network: Network, spec: EnvSpec, num_outputs: int) -> None:
        super().__init__(settings, network, spec, num_outputs)
        low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
        if not (low.isfinite() & high.isfinite()).all():
            problem = f"actions without limits cannot be squashed into them, and {spec.name} has such"
            raise SettingError("env.name", spec.name, problem, "choose another task or algorithm")
        self.register_buffer("center", (low + high) / 2, persistent=False)
        self.register_buffer("half_range", (high - low) / 2, persistent=False)

    def to_env_units(self, unit: Tensor) -> Tensor:
        """Actions in (-1, 1) `[..., A]` -> the env's units."""
        return self.center + self.half_range * unit

    def to_unit(self, action: Tensor) -> Tensor:
        """Actions in the env's units `[..., A]` -> (-1, 1)."""
        return (action - self.center) / self.half_range

    def random_action(self, noise: Tensor) -> Tensor:
        """Uniform actions between the limits from standard normal `noise`, both `[N, A]`."""
        return self.to_env_units(torch.special.ndtr(noise) * 2.0 - 1.0)

    def learned_action(self, action: Tensor) -> Tensor:
        """Actions as losses read them: in (-1, 1) `[B, A]`."""
        return self.to_unit(action)
