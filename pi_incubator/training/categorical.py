"""Values as probabilities of fixed bins (Bellemare et al. 2017, arXiv 1707.06887, eq. 7).

Letters: B samples, Z bins.
"""

from __future__ import annotations

import torch
from torch import Tensor


def make_bins(num_bins: int, largest_value: float, device: torch.device) -> Tensor:
    """The values `[Z]` of bins at equal distances, from `-largest_value` to `largest_value`."""
    return torch.linspace(-largest_value, largest_value, num_bins, device=device)


def project(probability: Tensor, value: Tensor, bins: Tensor) -> Tensor:
    """Probabilities `[..., Z]` of any values, as probabilities `[..., Z]` of the bins.

    Each value shares its probability between the two bins beside it, in proportion to how close they are;
    what lies outside goes to the first or the last bin.

    Args:
        probability: `[..., Z]`.
        value: `[..., Z]`, to which `probability` belongs.
        bins: `[Z]`.
    """
    place = (value.clamp(bins[0], bins[-1]) - bins[0]) / (bins[1] - bins[0])  # in bins
    index = torch.arange(len(bins), device=bins.device)
    # A sum over all pairs of bins instead of scattered additions, whose order would differ from run to run.
    shares = (1.0 - (place.unsqueeze(-1) - index).abs()).clamp_min(0.0)  # [..., Z, Z]
    return (probability.unsqueeze(-1) * shares).sum(-2)
