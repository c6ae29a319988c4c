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
    last = len(bins) - 1
    place = (value.clamp(bins[0], bins[-1]) - bins[0]) * (last / (bins[-1] - bins[0]))  # in bins
    place = place.clamp(max=last)  # the product may be rounded up
    return _by_pairs(probability, place) if bins.is_cuda else _by_scattering(probability, place)


def _by_scattering(probability: Tensor, place: Tensor) -> Tensor:
    """The work of Z, for a CPU; on CUDA the order of the additions would differ from run to run."""
    index = place.long().clamp(0, probability.shape[-1] - 2)  # of the bin below, also where a place is NaN
    of_above = place - index
    projected = torch.zeros_like(probability)
    projected = projected.scatter_add(-1, index, probability * (1.0 - of_above))
    return projected.scatter_add(-1, index + 1, probability * of_above)


def _by_pairs(probability: Tensor, place: Tensor) -> Tensor:
    """The work of Z * Z, but always the same sum."""
    index = torch.arange(probability.shape[-1], device=place.device)
    shares = (1.0 - (place.unsqueeze(-1) - index).abs()).clamp_min(0.0)  # [..., Z, Z]
    return (probability.unsqueeze(-1) * shares).sum(-2)
