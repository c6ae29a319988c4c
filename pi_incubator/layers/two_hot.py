"""Numbers of any size as a distribution over bins, as DreamerV3 predicts rewards and values.

Hafner et al. 2023, arXiv 2301.04104, eq. 1 and 8 to 10. Training sees a cross entropy, whose gradient does
not depend on how large the numbers are.

Letters: Z bins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def symlog(value: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|), elementwise."""
    return value.sign() * value.abs().log1p()


def symexp(value: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return value.sign() * value.abs().expm1()


class SymexpTwoHot(nn.Module):
    """Bins at `symexp` of equal distances, and what logits over them say.

    Args:
        num_bins: Z, odd, so that the middle one is zero.
        largest_symlog: of the last bin.
    """

    bins: Tensor
    """`[Z]`, the values of the bins, ascending."""

    def __init__(self, num_bins: int, largest_symlog: float = 20.0) -> None:
        super().__init__()
        upper = symexp(torch.linspace(0.0, largest_symlog, num_bins // 2 + 1))
        self.register_buffer("bins", torch.cat((-upper[1:].flip(0), upper)), persistent=False)

    def value(self, logits: Tensor) -> Tensor:
        """Logits `[..., Z]` -> the mean `[...]` of the bins under their softmax.

        Bins of opposite sign are added in pairs: added one after the other, numbers of 1e8 that cancel each
        other would leave rounding errors larger than most values.
        """
        probability, middle = logits.softmax(-1), len(self.bins) // 2
        upper, lower = probability[..., middle + 1 :], probability[..., :middle].flip(-1)
        return ((upper - lower) * self.bins[middle + 1 :]).sum(-1)

    def encode(self, value: Tensor) -> Tensor:
        """Values `[...]` -> probabilities `[..., Z]` of the two bins beside each, whose mean is the value."""
        bins = self.bins
        value = value.clamp(bins[0], bins[-1]).unsqueeze(-1)
        # The share of bin k grows from 0 at bin k - 1 to 1 at bin k, and falls to 0 at bin k + 1.
        gap = bins.diff()
        rising = torch.cat((torch.ones_like(value), (value - bins[:-1]) / gap), -1)
        falling = torch.cat(((bins[1:] - value) / gap, torch.ones_like(value)), -1)
        return torch.minimum(rising, falling).clamp(0.0, 1.0)

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Cross entropy `[...]` of logits `[..., Z]` and the two-hot code of values `[...]`."""
        return -(self.encode(value) * logits.log_softmax(-1)).sum(-1)
