"""A policy as a robot runs it: sensor readings in, actuator targets out, memory as inputs and outputs.

In training the env stacks observations, keeps the last action and turns actions into targets. All of it is
done here once more, around the network, so that a controller has nothing to get wrong.

Letters: B batch, D width of the readings, F width of one observation, H observations of the history,
S width of a state, A actions.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs_gpu.interface import PolicyInterface, Targets
from pi_incubator.errors import UserError
from pi_incubator.policies.policy import Policy

MEASURED = ("policy", "pixels")
"""The observation groups that a robot can give."""


class State(NamedTuple):
    """What the policy remembers from step to step; zeros at the start."""

    name: str
    width: int


class DeployablePolicy(nn.Module):
    """`(observation [B, D], states [B, S] each) -> (target [B, A], next states [B, S] each)`.

    The states are, in this order and as far as the policy has them: `last_action` (the clipped action),
    `history` (`H F` wide, oldest first) with `seen` (1 once the history is filled, before that the first
    observation fills it), and `hidden` (a recurrent network's own).

    Args:
        policy: is copied to the CPU.
        interface: of the env that it was trained in.

    Raises:
        UserError: the policy acts on something else than what a robot measures.
    """

    offset: Tensor
    clip: Tensor

    def __init__(self, policy: Policy, interface: PolicyInterface) -> None:
        super().__init__()
        if policy.groups != ("policy",):
            other = next(group for group in policy.groups if group != "policy")
            problem = f"the policy acts on the group {other!r}, which no robot measures"
            raise UserError(f"{problem}; distil it into one that acts on the group 'policy' alone")
        self.network = copy.deepcopy(policy.as_onnx()).cpu().eval()
        self.targets = _TargetModule(interface.targets)
        self.history = interface.history
        self.states = states_of(policy, interface)
        self._readings_before = _width_before_memory(interface)
        sensed = [term for term in interface.terms if term.kind != "last_action"]
        self.width = sum(term.width for term in sensed)
        zeros = [torch.zeros(term.width) if term.offset is None else term.offset for term in sensed]
        clips = [torch.full((term.width,), term.clip) for term in sensed]
        self.register_buffer("offset", torch.cat(zeros))
        self.register_buffer("clip", torch.cat(clips))
        self._shifts = bool(self.offset.any())
        self._clips = bool(self.clip.isfinite().any())

    def forward(self, observation: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        memory = dict(zip((state.name for state in self.states), states, strict=True))
        seen = self._frame(observation, memory)
        after: dict[str, Tensor] = {}
        if "history" in memory:
            longer = torch.cat((memory["history"][:, seen.shape[-1] :], seen), -1)
            seen = torch.where(memory["seen"] > 0, longer, seen.repeat(1, self.history))
            after |= {"history": seen, "seen": (memory["seen"] + 1).clamp(max=1.0)}
        if "hidden" in memory:
            action, after["hidden"] = self.network(seen, memory["hidden"])
        else:
            action = self.network(seen)
        after["last_action"] = action
        return (self.targets(action), *(after[state.name] for state in self.states))

    def _frame(self, readings: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """One observation as the task's `observe` gives it `[B, F]`."""
        if self._shifts:
            readings = readings - self.offset
        if self._clips:
            readings = torch.minimum(torch.maximum(readings, -self.clip), self.clip)
        if "last_action" not in memory:
            return readings
        before, after = readings[:, : self._readings_before], readings[:, self._readings_before :]
        parts = [part for part in (before, memory["last_action"], after) if part.shape[-1]]
        return torch.cat(parts, -1)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Zeros in the form of the inputs."""
        return tuple(torch.zeros(batch, width) for width in (self.width, *(s.width for s in self.states)))

    @property
    def input_names(self) -> list[str]:
        return ["observation", *(f"{state.name}_in" for state in self.states)]

    @property
    def output_names(self) -> list[str]:
        return ["target", *(f"{state.name}_out" for state in self.states)]


class _TargetModule(nn.Module):
    """`Targets.control` in a graph; targets that are the actions cost their limits alone."""

    offset: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    scale_below: Tensor | None

    def __init__(self, targets: Targets) -> None:
        super().__init__()
        for name in ("offset", "scale", "low", "high", "scale_below"):
            self.register_buffer(name, getattr(targets, name))
        self._is_identity = targets.are_actions

    def forward(self, action: Tensor) -> Tensor:
        if self._is_identity:
            return action.clamp(self.low, self.high)
        return Targets(self.offset, self.scale, self.low, self.high, self.scale_below).control(action)


def states_of(policy: Policy, interface: PolicyInterface) -> tuple[State, ...]:
    """What an exported `policy` remembers, in the order of the file's inputs."""
    states = [State("last_action", term.width) for term in interface.terms if term.kind == "last_action"]
    if interface.history > 1:
        states += [State("history", interface.history * interface.width), State("seen", 1)]
    if policy.state_width:
        states.append(State("hidden", policy.state_width))
    return tuple(states)


def sensor_readings(observation: Tensor, interface: PolicyInterface) -> Tensor:
    """What a robot would have measured where the env showed `observation` `[..., H F]`; `[..., D]`."""
    parts = observation[..., -interface.width :].split([term.width for term in interface.terms], -1)
    readings = [
        part if term.offset is None else part + term.offset.to(part.device)
        for term, part in zip(interface.terms, parts, strict=True)
        if term.kind != "last_action"
    ]
    return torch.cat(readings, -1)


def _width_before_memory(interface: PolicyInterface) -> int:
    """How many of the readings come before the last action in an observation."""
    width = 0
    for term in interface.terms:
        if term.kind == "last_action":
            break
        width += term.width
    return width
