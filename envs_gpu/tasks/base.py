"""What a task is: a scene, and pure torch functions of the physics state. No task names a backend.

Letters: N worlds, A actions, nu controls, D observation width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import mujoco
import torch
from torch import Tensor

from envs_gpu.physics.base import PhysicsState
from envs_gpu.random import WorldRandom


class Outcome(NamedTuple):
    """What one control step was worth."""

    reward: dict[str, Tensor]
    """The reward's weighted terms, name -> `[N]`; the reward is their sum."""
    terminated: Tensor
    """`[N]` bool: the task ended here, whatever the clock says."""
    measures: dict[str, Tensor]
    """What a person wants to read beside the return, name -> `[N]` (units in the name)."""


class Task(ABC):
    """One task. `bind` is called once with the compiled model; everything after it is pure and batched.

    The functions see the state in the simulator's dtype and must not write to it; the env casts what they
    return to float32. They are compiled, so they must not sync with the host or branch on values.
    """

    substeps: int
    """Physics timesteps per control step (frame skip)."""
    max_episode_steps: int
    """Control steps after which an episode is truncated."""
    unsupported: ClassVar[dict[str, str]] = {}
    """Backends that cannot run this task, name -> why, in a sentence."""

    @abstractmethod
    def scene(self) -> mujoco.MjSpec:
        """The world as MJCF, with a sensor for everything that the task reads beside qpos and qvel."""

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        """Look up addresses and put constants on the device."""
        self.action_low, self.action_high = torch.tensor(
            model.actuator_ctrlrange.T, dtype=torch.float32, device=device
        )
        self.sensor = {
            model.sensor(i).name: slice(adr, adr + dim)
            for i, (adr, dim) in enumerate(zip(model.sensor_adr, model.sensor_dim, strict=True))
        }
        self.control_dt = model.opt.timestep * self.substeps

    def control(self, action: Tensor) -> Tensor:
        """Clipped `action` `[N, A]` -> simulator controls `[N, nu]`."""
        return action

    def remember(self, state: PhysicsState) -> Tensor:
        """What `outcome` must know of the state before the step, as a copy `[N, ...]`."""
        return state.time.clone()

    @abstractmethod
    def observe(self, state: PhysicsState, episode_step: Tensor) -> dict[str, Tensor]:
        """Observation groups, name -> `[N, D]`. `episode_step` `[N]` is zero right after a reset."""

    @abstractmethod
    def outcome(self, state: PhysicsState, before: Tensor, action: Tensor) -> Outcome:
        """Reward, termination and measures of the step that led from `before` to `state`."""

    @abstractmethod
    def initial_state(self, random: WorldRandom) -> tuple[Tensor, Tensor]:
        """Draw `qpos` `[N, nq]` and `qvel` `[N, nv]` for the start of an episode."""
