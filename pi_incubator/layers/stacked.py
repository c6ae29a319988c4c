"""One network, or several of the same shape that are computed as one batched product, such as twin critics.

With `copies` C a layer holds C independent networks: its parameters are `[C, ...]`, its inputs
`[C, K, B, D]`. Without, its inputs are `[..., B, D]`.

Letters: C copies, K shards of a minibatch, B samples of a shard, D inputs, F outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pi_incubator.layers.encoder import StatelessEncoder
from pi_incubator.layers.precision import full_precision

Moments = list[Tensor] | None
"""Where batch normalizations append what they see; None: they use their running moments."""


def product(inputs: Tensor, weight: Tensor) -> Tensor:
    """`[*C, ..., D]` times weights `[*C, F, D]` -> `[*C, ..., F]`, in the precision of autocast."""
    if weight.ndim == 2:
        return linear(inputs, weight)
    return torch.einsum("c...d,cfd->c...f", inputs, weight)


def beside(parameter: Tensor, inputs: Tensor) -> Tensor:
    """`[*C, D]` in a shape that is broadcast with inputs `[*C, ..., D]`."""
    *copies, width = parameter.shape
    return parameter.view(*copies, *[1] * (inputs.ndim - parameter.ndim), width)


class StackedLinear(nn.Module):
    """A linear layer that starts as torch's does.

    Args:
        num_inputs: D.
        num_outputs: F.
        copies: C; None for a single network.
    """

    def __init__(self, num_inputs: int, num_outputs: int, copies: int | None = None) -> None:
        super().__init__()
        layers = [nn.Linear(num_inputs, num_outputs) for _ in range(copies or 1)]
        leading = () if copies is None else (copies,)
        weight = torch.stack([layer.weight.detach() for layer in layers])
        bias = torch.stack([layer.bias.detach() for layer in layers])
        self.weight = nn.Parameter(weight.view(*leading, num_outputs, num_inputs))
        self.bias = nn.Parameter(bias.view(*leading, num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., D]` -> `[..., F]`."""
        return product(inputs, self.weight) + beside(self.bias, inputs)


class StackedOutput(StackedLinear):
    """The last layer, in float32 also under autocast."""

    def forward(self, inputs: Tensor) -> Tensor:
        with full_precision(inputs.device):
            return super().forward(inputs)


class Trunk(nn.Module, ABC):
    """Layers with batch normalizations, from inputs to features."""

    num_features: int

    @abstractmethod
    def forward(self, inputs: Tensor, moments: Moments = None) -> Tensor:
        """`[..., B, D]` -> `[..., B, num_features]`."""


class TrunkEncoder(StatelessEncoder):
    """A trunk that normalizes by its running moments, unless a training asks for more.

    Args:
        trunk: the layers.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk, self.num_features = trunk, trunk.num_features

    def encode(self, observation: Tensor) -> Tensor:
        features: Tensor = self.trunk(observation)
        return features


class StackedCritics(nn.Module):
    """C critics side by side.

    Args:
        trunk: with C copies.
        head: the last layer, with as many.
        num_critics: C.
    """

    def __init__(self, trunk: Trunk, head: nn.Module, num_critics: int) -> None:
        super().__init__()
        self.trunk, self.head, self.num_critics = trunk, head, num_critics

    def forward(self, inputs: Tensor, moments: Moments = None) -> Tensor:
        """Observation and action `[K, B, D + A]` -> outputs `[C, K, B, F]`."""
        outputs: Tensor = self.head(self.trunk(inputs.expand(self.num_critics, *inputs.shape), moments))
        return outputs
