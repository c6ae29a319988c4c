"""Bounded, smooth reward terms in the manner of the DeepMind Control Suite."""

from __future__ import annotations

import math

from torch import Tensor


def gaussian_tolerance(value: Tensor, margin: float | Tensor, value_at_margin: float = 0.1) -> Tensor:
    """1 at zero, `value_at_margin` at `±margin`, a Gaussian between and beyond.

    Source: Tassa et al. 2018, "DeepMind Control Suite", section "Reward" (tolerance with bounds (0, 0)).
    """
    scale = math.sqrt(-2.0 * math.log(value_at_margin))
    return (-0.5 * (value * scale / margin).square()).exp()


def quadratic_tolerance(value: Tensor, margin: float) -> Tensor:
    """1 at zero, falling as a parabola to 0 at `±margin` and beyond.

    Source: as `gaussian_tolerance`, with the quadratic sigmoid and value 0 at the margin.
    """
    return (1.0 - (value / margin).square()).clamp_min(0.0)
