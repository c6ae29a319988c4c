"""Values of states and actions, for TorchRL's losses.

Letters: B samples, D observation width, A actions.
"""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from pi_incubator.layers.network import Network


class StateActionValue(nn.Module):
    """Normalized observation `[B, D]` and action in (-1, 1) `[B, A]` -> value `[B, 1]`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder = network.encoder(network.critic_group)
        width = self.encoder.num_features + network.spec.action_dim
        self.head = network.head(width, 1, output_gain=1.0)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        features, _ = self.encoder(observation, observation.new_zeros(0))
        return self.head(torch.cat((features, action), -1))


def make_critics(network: Network, number: int) -> list[TensorDictModule]:
    """Critics under the names that TorchRL's losses read."""
    keys = [network.critic_group, "action"]
    return [
        TensorDictModule(StateActionValue(network), in_keys=keys, out_keys=["state_action_value"])
        for _ in range(number)
    ]
