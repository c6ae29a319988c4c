"""What a policy says to a robot, and what it hears from one: the terms of its observation and its targets.

In simulation a task's `observe` and `control` do this. A robot has neither, so an exported policy must hold
what they do beside the physics: the order of the terms, what is subtracted from them, and how an action
becomes a target.

Letters: A actions (= actuators).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import mujoco
import torch
from torch import Tensor

from envs_gpu.errors import EnvError
from envs_gpu.models import driven_joints


@dataclass(frozen=True)
class Term:
    """One part of the observation that the policy acts on."""

    name: str
    width: int
    unit: str = "1"
    """Of every entry, or of the entries one by one, separated by `, `."""
    kind: Literal["sensor", "command", "last_action"] = "sensor"
    """`command` is what somebody asks for; `last_action` is the policy's own memory, which nobody sends."""
    offset: Tensor | None = None
    """`[width]` what `observe` subtracts from the value that a robot measures; None is nothing."""
    clip: float = math.inf
    """`observe` then limits it to ± this."""
    low: float | None = None
    high: float | None = None
    """A value beyond these cannot be right; None is any finite value."""


@dataclass(frozen=True)
class Targets:
    """How an action becomes what is sent to the motors; every tensor is `[A]` float32 on the CPU."""

    offset: Tensor
    """The target under an action of zero, which is the safe one."""
    scale: Tensor
    """How far an action of one moves the target."""
    low: Tensor
    high: Tensor
    scale_below: Tensor | None = None
    """As `scale`, for actions below zero where it is another one."""

    def control(self, action: Tensor) -> Tensor:
        """Clipped action `[N, A]` -> target `[N, A]`, what `Task.control` gives."""
        scale = self.scale
        if self.scale_below is not None:
            scale = torch.where(action > 0, scale, self.scale_below)
        return (self.offset + scale * action).clamp(self.low, self.high)


@dataclass(frozen=True)
class Servo:
    """What drives one joint."""

    joint: str
    """The joint's name; the actuator's own where it drives something else."""
    stiffness: float | None = None
    """Nm/rad, or N/m on a slide joint; None where the target is no position."""
    damping: float | None = None
    """Nm s/rad, or N s/m."""


@dataclass(frozen=True)
class PolicyInterface:
    """Everything between a policy and a robot, beside the network."""

    targets: Targets
    servos: tuple[Servo, ...]
    """In the order of the action."""
    terms: tuple[Term, ...] = ()
    """Of one observation of the group `policy`, in its order; a task that does not say leaves it empty, and
    the env fills in one term for all of it."""
    commands: tuple[str, ...] = ()
    """Names of the entries of the `command` terms, with their units."""
    history: int = 1
    """How many of its last observations the policy sees in one row, oldest first."""

    @property
    def width(self) -> int:
        """Of one observation, the policy's own memory included."""
        return sum(term.width for term in self.terms)


def identity_targets(low: Tensor, high: Tensor) -> Targets:
    """Targets that are the actions themselves, within `low` and `high` `[A]`."""
    low, high = low.cpu().float(), high.cpu().float()
    return Targets(torch.zeros_like(low), torch.ones_like(low), low, high)


def joint_position_term(default: Tensor, low: Tensor, high: Tensor, unit: str = "rad") -> Term:
    """Positions that are observed relative to a `default` pose; limits and pose `[J]`.

    A joint gives way at its stops, and encoders are off: positions count up to 1 rad beyond the widest ones.
    """
    return Term(
        "joint_position",
        len(default),
        unit,
        offset=default,
        low=low.min().item() - 1.0,
        high=high.max().item() + 1.0,
    )


def servos_of(model: mujoco.MjModel) -> tuple[Servo, ...]:
    """The servos of every actuator of `model`; one whose force is no spring's has no gains."""
    affine = (model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE) & (model.actuator_biasprm[:, 1] != 0)
    gains = [
        (float(gain[0]), float(-bias[2])) if spring else (None, None)
        for spring, gain, bias in zip(affine, model.actuator_gainprm, model.actuator_biasprm, strict=True)
    ]
    return tuple(Servo(joint, *pair) for joint, pair in zip(driven_joints(model), gains, strict=True))


class Controlled(Protocol):
    """The part of a task that its interface speaks of."""

    action_low: Tensor
    action_high: Tensor

    def control(self, action: Tensor) -> Tensor: ...


def check_interface(name: str, interface: PolicyInterface, width: int, task: Controlled) -> None:
    """Check that a task's interface says what its `observe` and `control` do.

    Args:
        name: the task's.
        interface: what it says.
        width: of one observation of its group `policy`.
        task: what it does.

    Raises:
        EnvError: the two differ.
    """
    if interface.width != width:
        problem = f"the terms of its interface are {interface.width} wide, its observation {width}"
        raise EnvError(f"task {name}: {problem}; name every part of the group `policy` in interface()")
    share = torch.linspace(0, 1, 11).unsqueeze(-1)
    action = torch.lerp(task.action_low.cpu(), task.action_high.cpu(), share)  # [11, A]
    control = task.control(action.to(task.action_low.device)).cpu().float()
    if not torch.allclose(interface.targets.control(action), control, rtol=1e-5, atol=1e-6):
        problem = "the targets of its interface are not what its control() gives"
        raise EnvError(f"task {name}: {problem}; override interface() beside control()")
