"""Layers whose parameters keep a fixed norm, for one network or for several side by side.

From FlashSAC (Kim et al. 2026, arXiv 2604.04539) and SimbaV2 (Lee et al. 2025, arXiv 2502.15280): the norm
of the weights cannot grow, so the effective learning rate stays what it was set to.

With `copies` C the layer holds C independent networks, such as twin critics, and computes them as one batched
product: its parameters are `[C, ...]`, its inputs `[C, K, B, D]`. Without, its inputs are `[..., B, D]`.

Letters: C copies, K shards of a minibatch, B samples of a shard, D inputs, F outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

MOMENTUM = 0.01
"""Share of the newest minibatch in the running moments."""
EPSILON = 1e-5
"""Added to a variance before its root is taken."""
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
    """A linear layer; the weights of each output have norm one.

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
        """`[..., D]` -> `[..., F]`, in the precision of autocast."""
        if self.weight.ndim == 2:
            return linear(inputs, self.weight)
        return torch.einsum("c...d,cfd->c...f", inputs, self.weight)

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
        """`[..., D]` -> `[..., F]`."""
        if not torch.is_autocast_enabled(inputs.device.type):
            return self._outputs(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            return self._outputs(inputs)

    def _outputs(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + _beside(self.bias, inputs)


class UnitBatchNorm(UnitLayer):
    """Batch normalization (Ioffe and Szegedy 2015); scale and shift together have norm sqrt(D).

    The running moments never move by themselves: what a minibatch has seen is given back, so that ranks can
    average it, and `follow` takes it over. The shards of a minibatch are normalized apart, so two ranks with
    one shard each compute what one rank with both computes. The running variance is that of a population;
    FlashSAC's own code takes B / (B - 1) of it.

    Args:
        width: D.
        copies: C; None for a single network.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, copies: int | None = None) -> None:
        super().__init__()
        shape = (width,) if copies is None else (copies, width)
        self.scale = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))

    def forward(self, inputs: Tensor, moments: list[Tensor] | None = None) -> Tensor:
        """Normalize `[..., B, D]`.

        Args:
            inputs: of one width.
            moments: None to normalize by the running moments. Otherwise each shard is normalized by its own,
                and their means over the shards, mean and variance, are appended.
        """
        inputs = inputs.to(self.scale.dtype)  # under autocast, a product of matrices is in bfloat16
        if moments is None:
            mean, variance = _beside(self.mean, inputs), _beside(self.variance, inputs)
        else:
            variance, mean = torch.var_mean(inputs, -2, correction=0, keepdim=True)
            moments += [self._over_shards(mean), self._over_shards(variance)]
        normalized = (inputs - mean) * torch.rsqrt(variance + EPSILON)
        return normalized * _beside(self.scale, inputs) + _beside(self.shift, inputs)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, sound: Tensor) -> None:
        """Move the running moments towards those of a minibatch, if `sound` (0-dim bool) is true."""
        for running, newest in ((self.mean, mean), (self.variance, variance)):
            running.copy_(torch.where(sound, running.lerp(newest, MOMENTUM), running))

    def rescaled(self) -> list[tuple[Tensor, Tensor]]:
        total = self.scale.square().sum(-1, keepdim=True) + self.shift.square().sum(-1, keepdim=True)
        factor = (self.scale.shape[-1] / (total + EPSILON_NORM)).sqrt()
        return [(self.scale, self.scale * factor), (self.shift, self.shift * factor)]

    def _over_shards(self, moment: Tensor) -> Tensor:
        """`[*C, ..., 1, D]` of each shard -> the mean `[*C, D]`."""
        copies = self.mean.shape[:-1]
        return moment.detach().to(self.mean).reshape(*copies, -1, moment.shape[-1]).mean(-2)


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
        return inputs * torch.rsqrt(mean_square + EPSILON_RMS) * _beside(self.scale, inputs)

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


def follow_moments(module: nn.Module, moments: Sequence[Tensor], sound: Tensor) -> None:
    """Let the batch normalizations of `module` follow what its forward pass appended to `moments`."""
    layers = [layer for layer in module.modules() if isinstance(layer, UnitBatchNorm)]
    for layer, mean, variance in zip(layers, moments[::2], moments[1::2], strict=True):
        layer.follow(mean, variance, sound)


def _beside(parameter: Tensor, inputs: Tensor) -> Tensor:
    """`[*C, D]` in a shape that is broadcast with inputs `[*C, ..., D]`."""
    *copies, width = parameter.shape
    return parameter.view(*copies, *[1] * (inputs.ndim - parameter.ndim), width)
