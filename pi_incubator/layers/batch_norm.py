"""Batch normalization whose running moments move only when an optimizer step says so.

Letters: as in `layers.stacked`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pi_incubator.layers.stacked import Moments, beside

MOMENTUM = 0.01
"""Share of the newest minibatch in the running moments."""
EPSILON = 1e-5
"""Added to a variance before its root is taken."""


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy 2015).

    The running moments never move by themselves: what a minibatch has seen is given back, so that ranks can
    average it, and `follow` takes it over. The shards of a minibatch are normalized apart, so two ranks with
    one shard each compute what one rank with both computes. The running variance is that of a population;
    the codes of FlashSAC and CrossQ take B / (B - 1) of it.

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

    def forward(self, inputs: Tensor, moments: Moments = None) -> Tensor:
        """Normalize `[..., B, D]`.

        Args:
            inputs: of one width.
            moments: None to normalize by the running moments. Otherwise each shard is normalized by its own,
                and their means over the shards, mean and variance, are appended.
        """
        inputs = inputs.to(self.scale.dtype)  # under autocast, a product of matrices is in bfloat16
        if moments is None:
            mean, variance = beside(self.mean, inputs), beside(self.variance, inputs)
        else:
            variance, mean = torch.var_mean(inputs, -2, correction=0, keepdim=True)
            moments += [self._over_shards(mean), self._over_shards(variance)]
        normalized = (inputs - mean) * torch.rsqrt(variance + EPSILON)
        return normalized * beside(self.scale, inputs) + beside(self.shift, inputs)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, sound: Tensor) -> None:
        """Move the running moments towards those of a minibatch, if `sound` (0-dim bool) is true."""
        for running, newest in ((self.mean, mean), (self.variance, variance)):
            running.copy_(torch.where(sound, running.lerp(newest, MOMENTUM), running))

    def _over_shards(self, moment: Tensor) -> Tensor:
        """`[*C, ..., 1, D]` of each shard -> the mean `[*C, D]`."""
        copies = self.mean.shape[:-1]
        return moment.detach().to(self.mean).reshape(*copies, -1, moment.shape[-1]).mean(-2)


def follow_moments(module: nn.Module, moments: Sequence[Tensor], sound: Tensor) -> None:
    """Let the batch normalizations of `module` follow what its forward pass appended to `moments`."""
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
    for layer, mean, variance in zip(layers, moments[::2], moments[1::2], strict=True):
        layer.follow(mean, variance, sound)
