"""Layers whose parameters keep a fixed norm.

From FlashSAC (Kim et al. 2026, arXiv 2604.04539) and SimbaV2 (Lee et al. 2025, arXiv 2502.15280): the norm
of the weights cannot grow, so the effective learning rate stays what it was set to.

Letters: as in `layers.stacked`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pi_incubator.layers.batch_norm import BatchNorm
from pi_incubator.layers.precision import full_precision
from pi_incubator.layers.stacked import beside, product

EPSILON_RMS = 1e-6
"""Added to a mean square before its root is taken."""
EPSILON_NORM = 1e-8
"""Least norm that a parameter is divided by."""


class UnitLayer(nn.Module, ABC):
    """A layer whose parameters are brought back to their norm after each optimizer step."""

    @abstractmethod
    def rescaled(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter with a norm, and the value that it has after being brought back to it."""


class UnitLinear(UnitLayer):
    """A linear layer without a bias; the weights of each output have norm one.

    Args:
        num_inputs: D.
        num_outputs: F.
        copies: C; None for a single network.
    """

    def __init__(self, num_inputs: int, num_outputs: int, copies: int | None = None) -> None:
        super().__init__()
        leading = () if copies is None else (copies,)
        weight = torch.empty(copies or 1, num_outputs, num_inputs)
        for of_copy in weight:
            nn.init.orthogonal_(of_copy)
        self.weight = nn.Parameter(normalize(weight, dim=-1).view(*leading, num_outputs, num_inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., D]` -> `[..., F]`."""
        return product(inputs, self.weight)

    def rescaled(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.weight, normalize(self.weight, dim=-1, eps=EPSILON_NORM))]


class UnitOutput(UnitLinear):
    """The last layer: with a bias, which has no fixed norm, and in float32 also under autocast.

    Args:
        num_inputs: D.
        num_outputs: F.
        copies: C; None for a single network.
    """

    def __init__(self, num_inputs: int, num_outputs: int, copies: int | None = None) -> None:
        super().__init__(num_inputs, num_outputs, copies)
        self.bias = nn.Parameter(torch.zeros(self.weight.shape[:-1]))

    def forward(self, inputs: Tensor) -> Tensor:
        with full_precision(inputs.device):
            return product(inputs, self.weight) + beside(self.bias, inputs)


class UnitBatchNorm(BatchNorm, UnitLayer):
    """Batch normalization; scale and shift together have norm sqrt(D)."""

    def rescaled(self) -> list[tuple[Tensor, Tensor]]:
        total = self.scale.square().sum(-1, keepdim=True) + self.shift.square().sum(-1, keepdim=True)
        factor = (self.scale.shape[-1] / (total + EPSILON_NORM)).sqrt()
        return [(self.scale, self.scale * factor), (self.shift, self.shift * factor)]


class UnitRMSNorm(UnitLayer):
    """Division by the root mean square of the features (Zhang and Sennrich 2019); the scale has norm sqrt(D).

    Args:
        width: D.
        copies: C; None for a single network.
    """

    def __init__(self, width: int, copies: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((width,) if copies is None else (copies, width)))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., D]` -> the same shape."""
        mean_square = inputs.square().mean(-1, keepdim=True)
        return inputs * torch.rsqrt(mean_square + EPSILON_RMS) * beside(self.scale, inputs)

    def rescaled(self) -> list[tuple[Tensor, Tensor]]:
        total = self.scale.square().sum(-1, keepdim=True)
        return [(self.scale, self.scale * (self.scale.shape[-1] / (total + EPSILON_NORM)).sqrt())]


@torch.no_grad()
def rescale(module: nn.Module, sound: Tensor) -> None:
    """Bring the parameters of all unit layers back to their norms, if `sound` (0-dim bool) is true."""
    for layer in module.modules():
        if isinstance(layer, UnitLayer):
            for parameter, value in layer.rescaled():
                parameter.copy_(torch.where(sound, value, parameter))
