"""Values of states and actions, for TorchRL's losses.

Letters: C critics, B samples, F features, A actions.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from pi_incubator.layers.encoder import StatelessEncoder
from pi_incubator.layers.network import Network

NUM_CRITICS = 2
"""Critics of which losses take the smaller value, or the mean (Fujimoto et al. 2018, arXiv 1802.09477)."""


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


def values_of(
    critic: TensorDictModule, weights: TensorDictBase, key: str, features: Tensor, action: Tensor
) -> Tensor:
    """The values `[C, B]` that critics give.

    Args:
        critic: one of `make_critics`, whose weights are replaced.
        weights: of C critics, stacked, as TorchRL's losses hold them.
        key: that of `make_critics`.
        features: `[B, F]`.
        action: `[B, A]` in (-1, 1).
    """
    values = []
    for one in weights.unbind(0):
        with one.to_module(critic):
            steps = TensorDict({key: features, "action": action}, batch_size=[len(action)])
            values.append(critic(steps)["state_action_value"].squeeze(-1))
    return torch.stack(values)


class StateValue(nn.Module):
    """Normalized observations `[..., D]` of the critic's groups -> value `[...]`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        encoder = network.critic_encoder()
        assert isinstance(encoder, StatelessEncoder)
        self.encoder, self.head = encoder, network.head(encoder.num_features, 1, output_gain=1.0)

    def forward(self, observation: Tensor) -> Tensor:
        value: Tensor = self.head(self.encoder.encode(observation.flatten(0, -2))).squeeze(-1)
        return value.unflatten(0, observation.shape[:-1])
