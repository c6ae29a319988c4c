"""How far an engine may be from the referee, C MuJoCo, after a control step, and who is known to be further.

An engine starts every control step from a state of the referee, rounded to float32, so that errors cannot
grow. What the referee itself makes of that state when it is off by one more bit of float32 is the control
group: it says how much of an error the rounding of any float32 engine accounts for.

Letters: T steps, N worlds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOAT32_EPS = 2.0**-23
READS_TEXT = {"newton"}
"""Engines that read the scene as MJCF, which has six digits: their referee reads the same text."""


class Tolerance(NamedTuple):
    """What one control step may add."""

    qpos: float = 1e-6
    """m and rad; float32's spacing is 2.4e-7 between 2 and 4."""
    qvel: float = 1e-6
    """m/s and rad/s."""
    exceptions: float = 0.0
    """Share of the steps that may exceed them."""


class Deviation(NamedTuple):
    """A pair of task and engine that is known to be further from the referee than float32's rounding."""

    tolerance: Tolerance
    reason: str
    explained: bool = True
    """Whether the reason is one: what is not explained yet is a defect of somebody's, named here."""


class Errors(NamedTuple):
    """The largest over a world's coordinates, `[T, N]`."""

    qpos: Tensor
    qvel: Tensor

    @staticmethod
    def between(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Errors:
        """Of positions and velocities `[..., nq]` and `[..., nv]`."""
        return Errors(*((x.double() - y.double()).abs().amax(-1) for x, y in zip(one, other, strict=True)))

    def exceeding(self, tolerance: Tolerance) -> float:
        """Share of the steps that add more than `tolerance`, or that are not finite."""
        # What is not smaller is larger, NaN too.
        within = (self.qpos <= tolerance.qpos) & (self.qvel <= tolerance.qvel)
        return (~within).double().mean().item()

    def keep(self, tolerance: Tolerance) -> bool:
        return self.exceeding(tolerance) <= tolerance.exceptions


# Ant's ankles reach 1e3 rad/s^2, of which float32 keeps seven digits at each of 20 Runge-Kutta stages. And
# where a contact sets in its force jumps, by its damping times the speed: a foot within 1e-7 m of the margin
# at one of the stages can touch in one engine and not in the other (seen in 1 step of 6,400, 4e-2 rad/s).
_ANT = Deviation(Tolerance(qpos=1e-6, qvel=5e-5, exceptions=1e-3), "float32 at 20 stages of stiff ankles")


def _not_explained(qpos: float, qvel: float) -> Deviation:
    seen = f"up to {qpos:.0e} m or rad and {qvel:.0e} m/s or rad/s in one control step"
    return Deviation(Tolerance(2 * qpos, 2 * qvel), f"not explained yet: {seen}", explained=False)


DEVIATIONS = {
    ("ant", "warp"): _ANT,
    ("ant", "mjx-warp"): _ANT,
    ("ant", "newton"): Deviation(
        Tolerance(qpos=3e-6, qvel=1e-4),
        "newton holds masses, inertias and frames in float32: the model itself is a bit off",
    ),
    ("ant", "mjx"): Deviation(
        Tolerance(qpos=2e-5, qvel=1e-3, exceptions=2e-3),
        # Tighter solver tolerances change no bit of it, float64 removes it.
        "mjx ends Newton's method when the cost, a float32 sum, falls no further: forces have four digits",
    ),
    # Found with Newton 1.8; the numbers are the most that one control step added.
    ("half_cheetah", "newton"): _not_explained(7e-5, 8e-3),
    ("inverted_double_pendulum", "newton"): _not_explained(7e-6, 1e-4),
    ("inverted_pendulum", "newton"): _not_explained(3e-6, 6e-5),
    ("reacher", "newton"): _not_explained(2e-6, 1e-5),
    ("swimmer", "newton"): _not_explained(2e-6, 3e-5),
}

CONTROL_FACTOR = 10.0
"""A float32 engine rounds at every operation, the control group only its state, and only once."""


def rounding_tolerance(control_group: Errors) -> Tolerance:
    """What float32 accounts for: ten times the control group's 99th percentile, in 99 % of the steps."""
    least = Tolerance()
    qpos, qvel = (CONTROL_FACTOR * errors.flatten().quantile(0.99).item() for errors in control_group)
    return Tolerance(max(least.qpos, qpos), max(least.qvel, qvel), exceptions=0.01)


def rounded(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """`values` as float32 has them; with a generator, off by up to one bit more."""
    if generator is not None:
        noise = 2 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1
        values = values * (1 + FLOAT32_EPS * noise)
    return values.float().double()
