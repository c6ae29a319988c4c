"""The small interface behind which every simulator steps N worlds.

Letters: N worlds, nq positions, nv velocities, na activations, nu controls, ns sensor values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.errors import EnvError

if TYPE_CHECKING:
    from envs_gpu.physics._capacity import Capacity


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
    """Sensor values `[N, ns]`, evaluated at `qpos`, `qvel` and `ctrl` as they are here; not after a push."""
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
    max_contacts: int | None = None
    """Contacts that worlds have room for, on average: they share it. None counts the scene's (`warp`,
    `newton`, `mjx` on Warp)."""
    max_constraints: int | None = None
    """Constraint rows that every world has room for; None and backends as for `max_contacts`."""
    start_act: tuple[float, ...] = ()
    """`[na]` activations with which worlds restart; empty is zeros."""
    per_world: tuple[str, ...] = ()
    """Model fields that worlds may differ in, such as `body_mass`, `opt.gravity`; see `Physics.randomize`."""


def scene_text(scene: mujoco.MjSpec) -> str:
    """The scene as MJCF that finds its meshes from everywhere, for an engine that reads it itself."""
    scene = scene.copy()
    for folder in ("meshdir", "texturedir"):
        setattr(scene, folder, f"{scene.modelfiledir}{getattr(scene, folder)}")
    return scene.to_xml()


class UnsupportedModelError(EnvError, ValueError):
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
    room: Capacity | None = None
    """What a world has room for; None where the simulator makes room as it needs it."""
    number_matters: ClassVar[str] = ""
    """Why a world's last bits depend on the number of worlds, in a sentence; empty where they do not."""

    def __init__(
        self, model: mujoco.MjModel, num_worlds: int, device: torch.device, options: PhysicsOptions
    ) -> None:
        self.model = model
        self.num_worlds = num_worlds
        self.device = device
        self.options = options
        self._start_act = torch.zeros(model.na, dtype=torch.float64)
        """`[na]` activations with which worlds restart, on the CPU."""
        if options.start_act:
            self._start_act[:] = torch.tensor(options.start_act)
        self._per_world: dict[str, list[Tensor]] = {}
        """Every `[N, ...]` array in which the engine reads a field of `options.per_world`."""

    @abstractmethod
    def step(self, ctrl: Tensor, substeps: int) -> None:
        """Advance every world by `substeps` timesteps under constant `ctrl` `[N, nu]`."""

    @abstractmethod
    def set_state(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Restart the worlds where `mask` `[N]` is true from `qpos` `[N, nq]` and `qvel` `[N, nv]`.

        Their time and controls become zero, their activations `options.start_act`, and their sensors are
        evaluated; the other worlds keep every bit.
        """

    def randomize(self, field: str, values: Tensor, worlds: Tensor) -> None:
        """Give `worlds` values of their own of a model field.

        Args:
            field: one of `options.per_world`.
            values: `[n, ...]`, in the field's shape.
            worlds: `[n]` int64; one that is named twice gets the same values twice.

        What MuJoCo's compiler derives from a field (`dof_invweight0`, `body_invweight0`, which scale the
        softness of constraints) stays the model's on every backend, so that one can check the other. Sensors
        follow with the next `step` or `set_state`.

        Raises:
            KeyError: the field is not one of `options.per_world`.
        """
        for view in self._per_world[field]:
            view[worlds] = values.to(view.dtype)

    def push(self, worlds: Tensor, change: Tensor) -> None:
        """Add `change` `[n, nv]` to the velocities of `worlds` `[n]`, of those named twice once.

        Sensors follow with the next `step`.
        """
        qvel = self.state.qvel
        qvel[worlds] += change.to(qvel.dtype)

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a bit-exact continuation needs, as copies."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` of the same backend, model and number of worlds gave."""

    def overflow_bits(self) -> Tensor:
        """`[N]` int32 bits of `Overflow` on the device: what found no room since `clear_overflow`.

        Such a world has lost contacts or constraints, and is not the model's world any more.
        """
        return torch.zeros(self.num_worlds, dtype=torch.int32, device=self.device)

    def overflow(self) -> Tensor:
        """`[N]` bool on the device: something found no room since `clear_overflow`."""
        return self.overflow_bits() != 0

    def clear_overflow(self) -> None:
        """Forget which worlds overflowed."""

    def world_fields(self) -> dict[str, Tensor]:
        """Fields of the model that differ from world to world, name -> `[N, ...]`; views, not copies."""
        return {field: views[0] for field, views in self._per_world.items()}

    def close(self) -> None:
        """Release threads and device memory; the object is not used afterwards."""

    def _model_state(self) -> dict[str, Tensor]:
        """The per-world fields, as copies, for `state_dict`."""
        return {f"model.{field}": views[0].clone() for field, views in self._per_world.items()}

    def _load_model_state(self, state: dict[str, Tensor]) -> None:
        everyone = torch.arange(self.num_worlds, device=self.device)
        for field in self._per_world:
            self.randomize(field, state[f"model.{field}"].to(self.device), everyone)


def nominal(model: mujoco.MjModel, field: str) -> np.ndarray:
    """The model's own value of a field, `opt.gravity` of its options."""
    return np.asarray(attrgetter(field)(model))


def check_layout(engine: str, field: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Check that an engine holds `field` as the model does, or as it should.

    Raises:
        UnsupportedModelError: values of a world, laid out like the model's, would mean something else there.
    """
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
        raise UnsupportedModelError(
            f"{engine} holds {field} otherwise than the scene: it cannot be randomized"
        )
