"""Values of states and actions, for TorchRL's losses.

Letters: B samples, F features, A actions.
"""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from pi_incubator.layers.encoder import StatelessEncoder
from pi_incubator.layers.network import Network


class StateActionValue(nn.Module):
    """Features of the critics' encoder `[B, F]` and action in (-1, 1) `[B, A]` -> value `[B, 1]`."""

    def __init__(self, network: Network, num_features: int) -> None:
        super().__init__()
        self.head = network.head(num_features + network.spec.action_dim, 1, output_gain=1.0)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.head(torch.cat((features, action), -1))
        return value


def make_critics(network: Network, num_features: int, key: str, number: int) -> list[TensorDictModule]:
    """Critics under the names that TorchRL's losses read; all of them read the features at `key`."""
    return [
        TensorDictModule(
            StateActionValue(network, num_features), in_keys=[key, "action"], out_keys=["state_action_value"]
        )
        for _ in range(number)
    ]


class StateValue(nn.Module):
    """Normalized observations `[..., D]` of the critic's group -> value `[...]`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        encoder = network.encoder(network.critic_group)
        assert isinstance(encoder, StatelessEncoder)
        self.encoder, self.head = encoder, network.head(encoder.num_features, 1, output_gain=1.0)

    def forward(self, observation: Tensor) -> Tensor:
        value: Tensor = self.head(self.encoder.encode(observation)).squeeze(-1)
        return value
