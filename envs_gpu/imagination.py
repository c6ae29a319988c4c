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
from typing import NamedTuple

import mujoco
import torch
from torch import Tensor

from envs_gpu.errors import EnvError
from envs_gpu.motion import Motion
from envs_gpu.physics.base import PhysicsState
from envs_gpu.random import Draws
from envs_gpu.tasks.base import Episode, Task

PHYSICS = "physics"
"""The observation group that holds the rows."""
_ODD = 0xD6E8FEB86659FD93 - (1 << 64)


class Imagined(NamedTuple):
    """A state of every world, and of its episode, in one floating dtype."""

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


class _Entry(NamedTuple):
    """Where something is in a row."""

    where: slice
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """What it is beside a row; None is the dtype of the row."""

    def read(self, rows: Tensor) -> Tensor:
        """This part of the rows `[N, W]`, in its shape and dtype."""
        value = rows[:, self.where]
        value = value.unflatten(-1, self.shape) if self.shape else value.squeeze(-1)
        return value if self.dtype is None else value.to(self.dtype)


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
        num_positions, num_velocities = self.motion.num_positions, self.motion.num_velocities
        self.state = slice(0, num_positions), slice(num_positions, num_positions + num_velocities)
        """Where positions and velocities are in a row."""
        self._memory, self._step = _entries_of(memory, num_positions + num_velocities)
        self._parameters = {known.name: self._step + 1 + i for i, known in enumerate(task.parameters)}
        self.width = self._step + 1 + len(self._parameters)
        """W."""

    def pack(self, state: PhysicsState, episode: Episode) -> Tensor:
        """Rows `[N, W]` of what the simulator and the env know of their worlds."""
        memory = [episode.memory[name].reshape(len(state.qpos), -1) for name in self._memory]
        parameters = [episode.parameters[name].unsqueeze(-1) for name in self._parameters]
        pieces = (state.qpos, state.qvel, *memory, episode.step.unsqueeze(-1), *parameters)
        return torch.cat([piece.float() for piece in pieces], -1)

    def unpack(self, rows: Tensor) -> Imagined:
        """The states in `rows` `[N, W]`."""
        qpos, qvel = (rows[:, where] for where in self.state)
        memory = {name: entry.read(rows) for name, entry in self._memory.items()}
        parameters = {name: rows[:, column] for name, column in self._parameters.items()}
        return Imagined(qpos, qvel, memory, rows[:, self._step].long(), parameters)

    def observe(self, now: Imagined, random: Tensor) -> dict[str, Tensor]:
        """The task's observation groups without noise, name -> `[N, D]`; `random` as of `judge`."""
        ctrl = now.qpos.new_zeros(len(now.qpos), 0)
        observed = self.task.observe(self._physics(now, ctrl), self._episode(now, random))
        return {name: value.to(now.qpos.dtype) for name, value in observed.items()}

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
        memory = {name: memory[name].to(before.memory[name].dtype) for name in self._memory}
        reward = functools.reduce(torch.add, outcome.reward.values()).to(qpos.dtype)
        return Judged(after._replace(memory=memory), reward, outcome.terminated)

    def check(self, rows: Tensor) -> None:
        """Check that gradients pass through the task's functions.

        Args:
            rows: `[N, W]` of any worlds.

        Raises:
            EnvError: reward or observation have no gradient, or one that is not finite.
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
        # `Draws` mixes the bits; an odd factor gives each step another block.
        return Episode(now.step, now.memory, Draws(random ^ (now.step * _ODD)), now.parameters)


def _entries_of(memory: Mapping[str, Tensor], start: int) -> tuple[dict[str, _Entry], int]:
    """Where a task's memory is in a row, from `start` on; and where it ends."""
    entries = {}
    for name, value in memory.items():
        stop, dtype = start + math.prod(value.shape[1:]), None if value.is_floating_point() else value.dtype
        entries[name] = _Entry(slice(start, stop), tuple(value.shape[1:]), dtype)
        start = stop
    return entries, start
