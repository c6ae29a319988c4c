"""How far a student is from its teacher.

Letters: B samples, A actions, F features.
"""

from __future__ import annotations

from torch import Tensor

LEAST_VARIANCE = 1e-8  # of a target: one that never moves is no reason to divide by zero


def gaussian_kl(mean: Tensor, std: Tensor, student_mean: Tensor, student_std: Tensor) -> Tensor:
    """KL divergence in nats `[B]` from one diagonal Gaussian, the teacher's, to another; all are `[B, A]`.

    In this direction, Rusu et al. 2016, "Policy Distillation", a student that cannot follow gets a wider
    distribution: its standard deviation says how far its means are off.
    """
    ratio = std / student_std
    shift = (mean - student_mean) / student_std
    return (0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()).sum(-1)


def scaled_mse(mean: Tensor, std: Tensor, student_mean: Tensor) -> Tensor:
    """Half the squared distance of the means in standard deviations of the teacher `[B]`; all are `[B, A]`.

    It is the KL divergence to a student with the teacher's standard deviation.
    """
    return 0.5 * ((mean - student_mean) / std).square().sum(-1)


def unexplained(target: Tensor, prediction: Tensor) -> Tensor:
    """Share of the variance of `target` over a batch that `prediction` leaves over, 0-dim.

    Both are `[B]` or `[B, F]`. Free of the target's unit, as values of a scaled reward need; a target without
    variance counts as one with very little.
    """
    variance = target.var(0, correction=0).mean()
    return (target - prediction).square().mean() / variance.clamp_min(LEAST_VARIANCE)


def mean_loss(kind: str, mean: Tensor, std: Tensor, student_mean: Tensor, student_std: Tensor) -> Tensor:
    """The mean over a batch, 0-dim, of the loss `kind`: `kl` or `mse`."""
    if kind == "kl":
        return gaussian_kl(mean, std, student_mean, student_std).mean()
    return scaled_mse(mean, std, student_mean).mean()
