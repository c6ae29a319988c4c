"""A task's own functions on states that a learned model predicts instead of a simulator.

What a step starts from is one float32 row for each world, the observation group `physics`: positions,
velocities, the task's memory, the step of the episode and the task's parameters. A replay buffer stores such
rows like any other observation, and `Imagination` continues from them.

Letters: N worlds, W width of a row, A actions, nq positions, nv velocities, P parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import torch
from torch import Tensor

from envs_gpu.errors import EnvError
from envs_gpu.motion import Motion
from envs_gpu.physics.base import PhysicsState
from envs_gpu.random import draws
from envs_gpu.tasks.base import Episode, Task

PHYSICS = "physics"
"""The observation group that holds the rows."""


class Imagined(NamedTuple):
    """A state of every world, and of its episode; float32."""

    qpos: Tensor
    """`[N, nq]`, m and rad."""
    qvel: Tensor
    """`[N, nv]`, m/s and rad/s."""
    memory: dict[str, Tensor]
    """The task's, name -> `[N, ...]`."""
    step: Tensor
    """`[N]` int64 control steps since the reset."""
    parameters: dict[str, Tensor]
    """The task's, name -> `[N]`."""


class Judged(NamedTuple):
    """What the task says of an imagined step."""

    after: Imagined
    reward: Tensor
    """`[N]`."""
    terminated: Tensor
    """`[N]` bool."""


@dataclass(frozen=True)
class _Entry:
    """Where something is in a row."""

    where: slice
    shape: tuple[int, ...]
    dtype: torch.dtype


class Imagination:
    """Rows of states, and the task's reward, termination and observation on them.

    Args:
        name: the task's name, for errors.
        task: attached to `model`.
        model: its compiled scene.
        memory: the task's memory of any worlds, name -> `[N, ...]`.
        device: where the tensors are.

    Raises:
        EnvError: the task reads sensors, or its actuators have activations, which nobody predicts.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        model: mujoco.MjModel,
        memory: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        if model.nsensordata:
            raise EnvError(f"{name} reads sensors, which a learned model does not predict")
        if model.na:
            raise EnvError(f"{name} has actuators with activations, which a learned model does not predict")
        self.task, self.motion = task, Motion(model, task.uniform_positions, task.control_dt, device)
        shapes = {"qpos": (int(model.nq),), "qvel": (int(model.nv),)}
        self._state = _entries(0, {key: (shape, torch.float32) for key, shape in shapes.items()})
        of_memory = {key: (tuple(value.shape[1:]), _imagined_dtype(value)) for key, value in memory.items()}
        self._memory = _entries(model.nq + model.nv, of_memory)
        start = model.nq + model.nv + sum(math.prod(shape) for shape, _ in of_memory.values())
        self._step = start
        self._parameters = {known.name: start + 1 + i for i, known in enumerate(task.parameters)}
        self.width = start + 1 + len(self._parameters)
        """W."""

    def pack(self, state: PhysicsState, episode: Episode) -> Tensor:
        """Rows `[N, W]` of what the simulator and the env know of their worlds."""
        memory = [episode.memory[name].flatten(1) for name in self._memory]
        parameters = [episode.parameters[name].unsqueeze(-1) for name in self._parameters]
        pieces = (state.qpos, state.qvel, *memory, episode.step.unsqueeze(-1), *parameters)
        return torch.cat([piece.float() for piece in pieces], -1)

    def unpack(self, rows: Tensor) -> Imagined:
        """The states in `rows` `[N, W]`."""
        return Imagined(
            **{name: entry_of(rows, entry) for name, entry in self._state.items()},
            memory={name: entry_of(rows, entry) for name, entry in self._memory.items()},
            step=rows[:, self._step].long(),
            parameters={name: rows[:, column] for name, column in self._parameters.items()},
        )

    def observe(self, now: Imagined, random: Tensor) -> dict[str, Tensor]:
        """The task's observation groups without noise, name -> `[N, D]`; `random` as of `judge`."""
        ctrl = now.qpos.new_zeros(len(now.qpos), 0)
        observed = self.task.observe(self._physics(now, ctrl), self._episode(now, random))
        return {name: value.float() for name, value in observed.items()}

    def judge(self, before: Imagined, action: Tensor, qpos: Tensor, qvel: Tensor, random: Tensor) -> Judged:
        """What an env does between the physics step and the reset.

        Args:
            before: the step.
            action: `[N, A]`, within the env's limits.
            qpos: `[N, nq]` after the step.
            qvel: `[N, nv]` after the step.
            random: `[N]` int64, from which the task's random numbers are computed.
        """
        after = before._replace(qpos=qpos, qvel=qvel, step=before.step + 1)
        state, episode = self._physics(after, self.task.control(action)), self._episode(after, random)
        outcome = self.task.outcome(state, episode, action)
        memory = self.task.remember(state, episode, action)
        memory = {name: memory[name].to(entry.dtype) for name, entry in self._memory.items()}
        reward = functools.reduce(torch.add, outcome.reward.values()).float()
        return Judged(after._replace(memory=memory), reward, outcome.terminated)

    def check(self, rows: Tensor) -> None:
        """Check that gradients pass through the task's functions.

        Args:
            rows: `[N, W]` of any worlds.

        Raises:
            EnvError: reward or observation depend on positions, velocities and action in no differentiable way.
        """
        before = self.unpack(rows)
        inputs = [before.qpos.clone(), before.qvel.clone()]
        low, high = self.task.action_low, self.task.action_high
        inputs.append(((low + high) / 2).nan_to_num(0.0).expand(len(rows), -1).clone())
        qpos, qvel, action = (value.requires_grad_() for value in inputs)
        random = torch.zeros_like(before.step)
        judged = self.judge(before, action, qpos, qvel, random)
        observed = torch.cat(list(self.observe(judged.after, random).values()), -1)
        for what, value in (("reward", judged.reward), ("observation", observed)):
            if not value.requires_grad:
                raise EnvError(f"the {what} of the task cannot be differentiated")
            gradients = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
            if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
                raise EnvError(f"the {what} of the task has a gradient that is not finite")

    def _physics(self, now: Imagined, ctrl: Tensor) -> PhysicsState:
        nothing = now.qpos.new_zeros(len(now.qpos), 0)
        time_s = self.task.control_dt * now.step.to(now.qpos.dtype)
        return PhysicsState(now.qpos, now.qvel, nothing, ctrl, nothing, time_s)

    def _episode(self, now: Imagined, random: Tensor) -> Episode:
        numbers = draws(random, torch.zeros_like(random), now.step)
        return Episode(now.step, now.memory, numbers, now.parameters)


def _entries(start: int, parts: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, _Entry]:
    """Where parts of these shapes are in a row, one after the other from `start` on."""
    entries = {}
    for name, (shape, dtype) in parts.items():
        stop = start + math.prod(shape)
        entries[name] = _Entry(slice(start, stop), shape, dtype)
        start = stop
    return entries


def entry_of(rows: Tensor, entry: _Entry) -> Tensor:
    """A part of the rows `[N, W]`, in its shape and dtype."""
    return (
        rows[:, entry.where].unflatten(-1, entry.shape).to(entry.dtype)
        if entry.shape
        else (rows[:, entry.where.start].to(entry.dtype))
    )


def _imagined_dtype(value: Tensor) -> torch.dtype:
    return torch.float32 if value.is_floating_point() else value.dtype
