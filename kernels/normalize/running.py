"""Observations and values normalized by the moments of all that has been seen. N rows of width D.

Moments are one float64 tensor `[3, D]`: how many rows, their mean, and the sum of squared deviations from it.
Two of them merge exactly (Chan, Golub and LeVeque 1983, eq. 2.1), so what came in another order, or was
gathered elsewhere, gives the same. Sums of squares are never taken about zero: an offset far above the spread
costs no digits beyond those that float32 has lost already.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels._checks import FLOATING, computed_in
from kernels.registry import kernel

MIN_STD = 1e-4


def make_moments(width: int, device: torch.device | str = "cpu") -> Tensor:
    """The moments of nothing, `[3, width]` float64: they normalize by a mean of 0 and a deviation of 1."""
    return torch.zeros(3, width, dtype=torch.float64, device=device)


def mean_and_std(moments: Tensor, min_std: float = MIN_STD) -> tuple[Tensor, Tensor]:
    """`[D]` each, float64: what `running_normalize` subtracts and divides by, for an export for instance.

    The deviation is divided by n, as of a population, and at least `min_std`.
    """
    count, mean, squares = moments
    std = (squares / count.clamp(min=1.0)).sqrt().clamp(min=min_std)
    return mean, torch.where(count > 0, std, 1.0)


def make_running_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `running_normalize`: N worlds observe T numbers each, a tenth is masked out."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(num_worlds, num_steps, generator=generator) * 3 + 2
    moments = make_moments(num_steps)
    gather_moments(observation + 1, moments, implementation="reference")
    mask = torch.rand(num_worlds, generator=generator) < 0.9
    return {
        "observation": observation.to(device, dtype),
        "moments": moments.to(device),
        "mask": mask.to(device),
    }


@kernel("running_normalize", inputs=make_running_inputs)
def running_normalize(
    observation: Tensor,
    moments: Tensor,
    *,
    update: bool = True,
    mask: Tensor | None = None,
    clip: float = 10.0,
    min_std: float = MIN_STD,
    implementation: str = "auto",
) -> Tensor:
    """`(observation - mean) / std`, clipped, by the moments so far; then they take the observation in.

    It is normalized by the moments as they were before, so memory is read once, and what is the moments'
    first batch passes as it is but for the clipping. To hold them still over a rollout and its update, give
    `update=False` and let `gather_moments` fill others, which `merge_moments` adds. Not differentiable.

    Args:
        observation: `[..., D]` float32, bfloat16 or float16, computed in float32, or float64 for the
            reference; anything but the last dimension is rows. Copied if not contiguous.
        moments: `[3, D]` float64 of `make_moments`, contiguous; changed in place, unless frozen.
        update: whether the moments take the observation in; False freezes them.
        mask: bool in the shape of `observation` without D: a row where it is false stays out of the moments,
            even if it is NaN, and is normalized nevertheless. Any other NaN stays in the moments.
        clip: the result lies in ±`clip`, above zero; `math.inf` does not clip. NaN stays NaN.
        min_std: below it no deviation is divided by, so that what never moved has a finite scale.
        implementation: as for `kernels.gae.gae`.

    Returns:
        The normalized observation, contiguous, in its shape and dtype.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    _check("running_normalize", observation, moments, mask)
    for name, number in {"clip": clip, "min_std": min_std}.items():
        if not number > 0.0:
            raise ValueError(f"running_normalize: {name} must be above zero, got {number}")
    call = _normalize_op if torch.compiler.is_compiling() else _normalize
    return call(observation.detach(), moments, update, mask, float(clip), float(min_std), implementation)


def gather_moments(
    observation: Tensor, moments: Tensor, mask: Tensor | None = None, *, implementation: str = "auto"
) -> None:
    """The moments take the observation in, in place; arguments and errors as of `running_normalize`."""
    _check("gather_moments", observation, moments, mask)
    call = _gather_op if torch.compiler.is_compiling() else _gather
    call(observation.detach(), moments, mask, implementation)


@torch.no_grad()
def merge_moments(moments: Tensor, gathered: Tensor) -> None:
    """`moments` become, in place, those of both; a few operations of torch on `[D]`.

    Of several processes, merge what each has gathered; where nothing was gathered nothing changes.
    """
    moments.copy_(_merged(moments, gathered))


@torch.no_grad()
def merge_all(moments: Tensor) -> Tensor:
    """`[3, D]` of everything that R processes have seen: their moments `[R, 3, D]`, merged in rank order.

    The order is fixed, so every process that merges the same tensor gets the same bits. A rank that has seen
    nothing changes nothing. The result shares no memory with the input.

    Raises:
        ValueError: `moments` is not `[R, 3, D]` with at least one rank.
    """
    if moments.ndim != 3 or moments.shape[0] < 1 or moments.shape[1] != 3:
        raise ValueError(f"merge_all: moments must be [R, 3, D] with R >= 1, got {list(moments.shape)}")
    merged = moments[0].clone()
    for gathered in moments[1:]:
        merged = _merged(merged, gathered)
    return merged


def _merged(moments: Tensor, gathered: Tensor) -> Tensor:
    """The moments `[3, D]` of both (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    count, mean, squares = moments
    more, middle, found = gathered
    total = count + more
    share, shift = more / total.clamp(min=1.0), middle - mean
    return torch.stack((total, mean + shift * share, squares + found + shift**2 * count * share))


def normalize_value(
    value: Tensor,
    moments: Tensor,
    *,
    update: bool = True,
    mask: Tensor | None = None,
    clip: float = math.inf,
    min_std: float = MIN_STD,
    implementation: str = "auto",
) -> Tensor:
    """`running_normalize` of values of any shape, all of one quantity: moments `[3, 1]`, a mask of the shape
    of `value`. Freeze it where what it returns is to be denormalized by the same moments.
    """
    return running_normalize(
        value.unsqueeze(-1),
        moments,
        update=update,
        mask=mask,
        clip=clip,
        min_std=min_std,
        implementation=implementation,
    ).squeeze(-1)


def denormalize_value(value: Tensor, moments: Tensor, *, min_std: float = MIN_STD) -> Tensor:
    """`value * std + mean`, in the dtype of `value`: undoes `normalize_value` with the same moments.

    Two operations of torch, which a graph fuses with the critic's; differentiable by `value`.
    """
    mean, std = (x.squeeze(-1) for x in mean_and_std(moments, min_std))
    return (value.to(computed_in(value.dtype)) * std + mean).to(value.dtype)


def _check(name: str, observation: Tensor, moments: Tensor, mask: Tensor | None) -> None:
    if observation.ndim < 1 or observation.dtype not in FLOATING:
        raise ValueError(
            f"{name}: observation must be [..., D] of float32, bfloat16, float16 or float64, "
            f"got {list(observation.shape)} {observation.dtype}"
        )
    *rows, width = observation.shape
    device = observation.device
    expected = ((3, width), torch.float64, device)
    if (moments.shape, moments.dtype, moments.device) != expected or not moments.is_contiguous():
        raise ValueError(
            f"{name}: moments must be [3, {width}] torch.float64 on {device}, contiguous, like observation, "
            f"got {list(moments.shape)} {moments.dtype} on {moments.device}"
        )
    if mask is not None and (list(mask.shape), mask.dtype, mask.device) != (rows, torch.bool, device):
        raise ValueError(
            f"{name}: mask must be {rows} torch.bool on {device} like the rows of observation, "
            f"got {list(mask.shape)} {mask.dtype} on {mask.device}"
        )


def _normalize(
    observation: Tensor,
    moments: Tensor,
    update: bool,
    mask: Tensor | None,
    clip: float,
    min_std: float,
    implementation: str,
) -> Tensor:
    dtype = computed_in(observation.dtype)
    module = dispatch.load("normalize", implementation, observation.device.type, dtype)
    if observation.numel() == 0:
        return observation.new_empty(observation.shape)
    rows, kept = _as_rows(observation, mask)
    return module.running_normalize(rows, moments, update, kept, clip, min_std).view(observation.shape)


_normalize_op = torch.library.custom_op(
    "pi_incubator::running_normalize", _normalize, mutates_args={"moments"}
)


@_normalize_op.register_fake
def _(observation: Tensor, *_: Any) -> Tensor:
    return observation.new_empty(observation.shape)


def _gather(observation: Tensor, moments: Tensor, mask: Tensor | None, implementation: str) -> None:
    dtype = computed_in(observation.dtype)
    module = dispatch.load("normalize", implementation, observation.device.type, dtype)
    if observation.numel():
        rows, kept = _as_rows(observation, mask)
        module.gather_moments(rows, moments, kept)


_gather_op = torch.library.custom_op("pi_incubator::gather_moments", _gather, mutates_args={"moments"})


@_gather_op.register_fake
def _(*_: Any) -> None:
    """It returns nothing."""


def _as_rows(observation: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`[N, D]` and `[N]`, contiguous."""
    rows = observation.contiguous().view(-1, observation.shape[-1])
    return rows, None if mask is None else mask.contiguous().view(-1)
