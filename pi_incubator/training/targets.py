"""Target networks: slow copies of networks, from which targets of losses are computed (Mnih et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def follow(targets: Iterable[Tensor], weights: Iterable[Tensor], tau: float, sound: Tensor) -> None:
    """Move target weights in place by the share `tau` of the way to the learned weights.

    Args:
        targets: the weights of the copy.
        weights: those that it follows, in the same order.
        tau: in [0, 1].
        sound: 0-dim bool; where it is false not a bit changes.
    """
    share = torch.where(sound, tau, 0.0)
    for target, weight in zip(targets, weights, strict=True):
        target.lerp_(weight, share)
