"""The small interface behind which every simulator steps N worlds.

Letters: N worlds, nq positions, nv velocities, na activations, nu controls, ns sensor values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import mujoco
import torch
from torch import Tensor


class PhysicsState(NamedTuple):
    """Views into the simulator's own memory, valid until the next `step` or `set_state`.

    The dtype is the simulator's (float64 for C MuJoCo, float32 on the GPU backends).
    """

    qpos: Tensor
    """Generalized positions `[N, nq]`, m and rad."""
    qvel: Tensor
    """Generalized velocities `[N, nv]`, m/s and rad/s."""
    act: Tensor
    """Actuator activations `[N, na]`."""
    ctrl: Tensor
    """The controls of the last step `[N, nu]`."""
    sensordata: Tensor
    """Sensor values `[N, ns]`, evaluated at `qpos`, `qvel` and `ctrl` as they are here."""
    time: Tensor
    """Simulated seconds since the world's last reset `[N]`."""


@dataclass(frozen=True)
class PhysicsOptions:
    """What a backend may be told beside its model; each reads what concerns it."""

    num_threads: int = 0
    """Threads that step worlds on the CPU; 0 takes every available core (`mujoco`)."""
    mjx_impl: str = "jax"
    """Which implementation MJX runs, `jax` or `warp` (`mjx`)."""
    mjcf: str = ""
    """The scene as text, for an engine that reads it itself (`newton`)."""


class UnsupportedModelError(ValueError):
    """A backend cannot simulate this model as it is; the message is one line that says why."""


class Physics(ABC):
    """N independent worlds of one MuJoCo model on one device.

    Every backend keeps two promises that MuJoCo's own `mj_step` does not make. Sensors belong to the state
    that is returned: `mj_step` evaluates them before it integrates, so there they lag by one timestep. And a
    world that has gone NaN stays NaN until it is reset, where C MuJoCo would silently start it anew.
    """

    name: str
    """The backend's name in the registry."""
    state: PhysicsState
    """The current state; the same views for the life of the object, unless the backend says otherwise."""
    number_matters: ClassVar[str] = ""
    """Why a world's last bits depend on the number of worlds, in a sentence; empty where they do not."""

    def __init__(
        self, model: mujoco.MjModel, num_worlds: int, device: torch.device, options: PhysicsOptions
    ) -> None:
        self.model = model
        self.num_worlds = num_worlds
        self.device = device
        self.options = options

    @abstractmethod
    def step(self, ctrl: Tensor, substeps: int) -> None:
        """Advance every world by `substeps` timesteps under constant `ctrl` `[N, nu]`."""

    @abstractmethod
    def set_state(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Restart the worlds where `mask` `[N]` is true from `qpos` `[N, nq]` and `qvel` `[N, nv]`.

        Their time, controls and activations become zero and their sensors are evaluated; the other worlds
        keep every bit.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a bit-exact continuation needs, as copies."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` of the same backend, model and number of worlds gave."""

    def close(self) -> None:
        """Release threads and device memory; the object is not used afterwards."""
