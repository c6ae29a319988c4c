"""What a robot sends to a policy, and what the policy sends back: observation terms and targets.

In simulation a task's `observe` and `control` do this. A robot has neither, so an exported policy must
contain what they do outside of the physics: the order of the terms, what is subtracted from them, and how an
action becomes a target.

Letters: A actions (= actuators).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import mujoco
import torch
from torch import Tensor

from envs_gpu.actuators import controls, driven_joints
from envs_gpu.errors import EnvError

_FINEST = 42.0
"""A float32 of this size has steps of 4e-6; two of them are within the tolerance of an export, 1e-5."""

TermKind: TypeAlias = Literal["sensor", "command", "last_action"]


@dataclass(frozen=True)
class Term:
    """One part of the observation that the policy acts on, as an export describes it.

    A task declares it as an `envs_gpu.observation.ObservationTerm`.
    """

    name: str
    width: int
    unit: str = "1"
    """Of every entry, or of the entries one by one, separated by `, `."""
    kind: TermKind = "sensor"
    """`sensor` is measured, `command` is sent by somebody, `last_action` is remembered by the policy."""
    offset: Tensor | None = None
    """`[width]` float32 on the CPU: `observe` subtracts it from what the robot measures; None is zero."""
    clip: float = math.inf
    """After that, `observe` limits the value to ± this."""
    low: float | None = None
    high: float | None = None
    """A reading beyond these limits is certainly wrong; None is any finite value."""
    noise: float | None = None
    """In the term's unit: a run's observation noise is multiplied with it. None where nobody declared one."""


@dataclass(frozen=True)
class Targets:
    """How an action becomes what is sent to the motors; every tensor is `[A]` float32 on the CPU."""

    offset: Tensor
    """The target for an action of zero, which is the safe target."""
    scale: Tensor
    """How far an action of one moves the target."""
    low: Tensor
    high: Tensor
    scale_below: Tensor | None = None
    """The scale for actions below zero; None is `scale`."""

    @property
    def are_actions(self) -> bool:
        """Whether the targets are the actions themselves, within their limits."""
        return self.scale_below is None and not self.offset.any() and bool((self.scale == 1).all())

    @property
    def unit(self) -> Tensor:
        """`[A]` what an error of a target is measured in: 1 for targets of ordinary size.

        For larger ones it is what an action of one moves the target by, or half the range where the target is
        the action. It is never so small that it asks for more digits than a float32 has.
        """
        half_range = 0.5 * (self.high - self.low)
        below = self.scale if self.scale_below is None else self.scale_below
        reach = half_range if self.are_actions else torch.maximum(self.scale.abs(), below.abs())
        ends = torch.stack((self.low, self.high, self.offset)).abs()
        largest = torch.where(ends.isfinite(), ends, 0.0).amax(0)
        reach = torch.where(reach.isfinite(), reach, 1.0)
        return torch.maximum(reach, largest / _FINEST).clamp(min=1.0)

    def control(self, action: Tensor) -> Tensor:
        """Clipped action `[N, A]` -> target `[N, A]`, as `Task.control` gives it."""
        scale = self.scale
        if self.scale_below is not None:
            scale = torch.where(action > 0, scale, self.scale_below)
        return (self.offset + scale * action).clamp(self.low, self.high)


@dataclass(frozen=True)
class Servo:
    """What drives one joint."""

    joint: str
    """The joint's name, or the actuator's name where it drives no joint."""
    stiffness: float | None = None
    """Nm/rad, or N/m on a slide joint; None where the target is not a position."""
    damping: float | None = None
    """Nm s/rad, or N s/m."""


@dataclass(frozen=True)
class PolicyInterface:
    """Everything between a policy and a robot except the network."""

    targets: Targets
    servos: tuple[Servo, ...]
    """In the order of the action."""
    terms: tuple[Term, ...] = ()
    """The terms of one observation of the group `policy`, in order. For a task that declares none, the env
    fills in one term for the whole observation."""
    commands: tuple[str, ...] = ()
    """Names of the entries of the `command` terms, with units."""
    history: int = 1
    """How many of its last observations the policy sees in one row, oldest first."""

    @property
    def width(self) -> int:
        """Width of one observation, including the last action."""
        return sum(term.width for term in self.terms)


def identity_targets(low: Tensor, high: Tensor) -> Targets:
    """Targets that are the actions themselves, within `low` and `high` `[A]`."""
    low, high = low.cpu().float(), high.cpu().float()
    return Targets(torch.zeros_like(low), torch.ones_like(low), low, high)


def servos_of(model: mujoco.MjModel) -> tuple[Servo, ...]:
    """`[nu]` the servo of every control of `model`; one that is not a spring and a damper has no gains."""
    affine = (model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE) & (model.actuator_biasprm[:, 1] != 0)
    gains = [
        (float(gain[0]), float(-bias[2])) if spring else (None, None)
        for spring, gain, bias in zip(affine, model.actuator_gainprm, model.actuator_biasprm, strict=True)
    ]
    of_controls = [gains[control.actuator] for control in controls(model)]
    return tuple(Servo(joint, *pair) for joint, pair in zip(driven_joints(model), of_controls, strict=True))


class Controlled(Protocol):
    """The part of a task that its targets describe."""

    action_low: Tensor
    action_high: Tensor

    def control(self, action: Tensor) -> Tensor: ...


def check_interface(name: str, interface: PolicyInterface, width: int, task: Controlled) -> None:
    """Check that a task's interface describes what its `observe` and `control` do.

    Args:
        name: the task's name.
        interface: what is checked.
        width: width of one observation of the task's group `policy`.
        task: limits of its actions, and its `control`.

    Raises:
        EnvError: the interface describes something else.
    """
    if interface.width != width:
        problem = f"the terms of its interface are {interface.width} wide, its observation {width}"
        raise EnvError(f"task {name}: {problem}; declare every part of the group `policy` in observation()")
    share = torch.linspace(0, 1, 11).unsqueeze(-1)
    action = torch.lerp(task.action_low.cpu(), task.action_high.cpu(), share)  # [11, A]
    control = task.control(action.to(task.action_low.device)).cpu().float()
    unit = interface.targets.unit
    if not torch.allclose(interface.targets.control(action) / unit, control / unit, rtol=1e-5, atol=1e-6):
        problem = "the targets of its interface are not what its control() gives"
        raise EnvError(f"task {name}: {problem}; override targets() beside control()")
