"""LaProp with adaptive gradient clipping, DreamerV3's optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pi_incubator.training.adam import Adam

LEAST_NORM = 1e-3
"""Of weights, in `clip_by_weights`: so that weights of zero can move."""


class LaProp(Adam):
    """Momentum of normalized gradients (Ziyin et al. 2020, arXiv 2002.04839, algorithm 1).

    Adam normalizes the momentum instead: there a gradient that is much larger than those before it makes a
    step that lasts as long as the momentum. Arguments as of `Adam`.
    """

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], sound: Tensor) -> None:
        (beta1, beta2), step = self.betas, self.step_count[0] + 1.0
        # Not `beta ** step`, see `Adam`.
        correction1, correction2 = (1.0 - torch.exp(step * math.log(beta)) for beta in self.betas)
        step_size = self.lr / correction1
        for i, (weight, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            square = torch.lerp(gradient.square(), self.square[i], beta2)
            normalized = gradient / ((square / correction2).sqrt() + self.eps)
            mean = torch.lerp(normalized, self.mean[i], beta1)
            weight.copy_(torch.where(sound, weight - step_size * mean, weight))
            self.mean[i].copy_(torch.where(sound, mean, self.mean[i]))
            self.square[i].copy_(torch.where(sound, square, self.square[i]))
            self.step_count[i].add_(sound)


def clip_by_weights(gradients: Sequence[Tensor], weights: Sequence[Tensor], share: float) -> list[Tensor]:
    """Gradients scaled so that the norm of each is at most `share` of the norm of its weights.

    Brock et al. 2021 (arXiv 2102.06171, eq. 3), with one norm for a tensor, as DreamerV3 has it.
    """
    clipped = []
    for gradient, weight in zip(gradients, weights, strict=True):
        limit = share * weight.detach().norm().clamp_min(LEAST_NORM)
        clipped.append(gradient * (limit / gradient.norm().clamp_min(1e-12)).clamp(max=1.0))
    return clipped
