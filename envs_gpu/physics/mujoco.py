"""C MuJoCo on all cores through `mujoco.batch`; the referee that other backends are checked against."""

from __future__ import annotations

import os

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch
from torch import Tensor

from envs_gpu.physics import backend, honours
from envs_gpu.physics.base import Physics, PhysicsOptions, PhysicsState

_DISABLE, _JOINT, _SAME = mujoco.mjtDisableBit, mujoco.mjtJoint, mujoco.mjtSameFrame
_WARNING = mujoco.mjtWarning
_FATAL = [int(_WARNING.mjWARN_INERTIA), int(_WARNING.mjWARN_BADCTRL)]
"""Warnings after which a world is not the model's any more, though its state is finite."""
_INERTIAL = ("body_mass", "body_inertia", "dof_armature")
"""What the diagonal of a simple body's mass matrix is made of."""


def available_cores() -> int:
    """Cores this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@backend("mujoco")
class MujocoPhysics(Physics):
    """Worlds as rows of one float64 array that MuJoCo, numpy and torch share.

    Fields of the model in which worlds differ are rows too: the engine's threads swap them in world by world,
    and everything else is there once for all.

    Args:
        model: the compiled scene.
        num_worlds: N.
        device: must be the CPU.
        options: `num_threads` and `per_world`.

    Raises:
        ValueError: another device was asked for.
    """

    name = "mujoco"

    def __init__(
        self, model: mujoco.MjModel, num_worlds: int, device: torch.device, options: PhysicsOptions
    ) -> None:
        super().__init__(model, num_worlds, device, options)
        if device.type != "cpu":
            raise ValueError(f"backend mujoco runs on the cpu, not on {device}: use warp or mjx there")
        self.num_threads = min(options.num_threads or available_cores(), num_worlds)
        engine_model = _engine_model(model, options.per_world)
        self._batch = Batch(engine_model, num_worlds, self.num_threads)
        self._full, self._ctrl = self._batch.state, self._batch.bind("ctrl")
        self._warmstart, self._sensed = self._batch.bind("qacc_warmstart"), self._batch.bind("sensordata")
        self._sensordata = np.zeros_like(self._sensed)
        self._disabled = self._batch.expand("opt.disableflags")
        self._sensing = int(engine_model.opt.disableflags)
        self._stepping = self._sensing | int(_DISABLE.mjDSBL_SENSOR)
        self._per_world = {name: [torch.from_numpy(self._batch.expand(name))] for name in options.per_world}
        self._simple = _SimpleDofs(model, self._batch) if {*_INERTIAL} & {*options.per_world} else None
        self._warned = self._batch.warning[..., 1]  # [N, kinds]
        self._batch.bind("act")[:] = self._start_act.numpy()
        self._rest = self._full[0].copy()
        self.state = self._views()
        self._qpos, self._qvel = self.state.qpos.numpy(), self.state.qvel.numpy()
        self._evaluate_sensors(None)

    def step(self, ctrl: Tensor, substeps: int) -> None:
        self.state.ctrl.copy_(ctrl)
        # What the solver starts from shall be a function of the state.
        self._warmstart[:] = 0.0
        self._disabled[:] = self._stepping
        self._batch.warning[:] = 0
        self._batch.step(None, substeps)
        self._spoil_warned()
        self._evaluate_sensors(None)

    def set_state(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        worlds = mask.numpy().nonzero()[0]
        if not len(worlds):
            return
        # The row is all that a world is between two calls; the engine's own reset takes longer than a step.
        self._full[worlds] = self._rest
        self._qpos[worlds] = qpos.numpy()[worlds]
        self._qvel[worlds] = qvel.numpy()[worlds]
        self._evaluate_sensors(worlds)

    def randomize(self, field: str, values: Tensor, worlds: Tensor) -> None:
        super().randomize(field, values, worlds)
        if self._simple and field in _INERTIAL:
            self._simple.update()

    def state_dict(self) -> dict[str, Tensor]:
        arrays = {"full": self._full, "sensordata": self._sensordata}
        copies = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return copies | self._model_state()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._full[:] = state["full"].numpy()
        self._sensordata[:] = state["sensordata"].numpy()
        self._load_model_state(state)

    def _views(self) -> PhysicsState:
        def view(name: str) -> Tensor:
            return torch.from_numpy(self._batch.bind(name))

        return PhysicsState(
            qpos=view("qpos"),
            qvel=view("qvel"),
            act=view("act"),
            ctrl=torch.from_numpy(self._ctrl),
            sensordata=torch.from_numpy(self._sensordata),
            time=view("time"),
        )

    def _spoil_warned(self) -> None:
        """Make the worlds NaN that C warned of: it takes a control that is NaN for zero, and goes on."""
        if self._warned.any():  # of whatever, which is seldom
            for kind in _FATAL:
                self._qpos[self._warned[:, kind] > 0] = np.nan

    def _evaluate_sensors(self, worlds: np.ndarray | None) -> None:
        """Sensors of the state as it is, of `worlds` or of all."""
        if self.model.nsensordata:
            self._warmstart[:] = 0.0
            self._disabled[:] = self._sensing
            self._batch.forward(worlds)
            rows = slice(None) if worlds is None else worlds
            self._sensordata[rows] = self._sensed[rows]


class _SimpleDofs:
    """The one derived constant that C steps with, and other engines do not.

    Of a body that moves on its own, around its own principal axes, C takes the row of the mass matrix from
    `dof_M0`, which the compiler has worked out.
    """

    def __init__(self, model: mujoco.MjModel, batch: Batch) -> None:
        self._dofs = np.flatnonzero(model.dof_simplenum)
        self._bodies = model.dof_bodyid[self._dofs]
        self._kinds = np.array([_inertia_of_dof(model, int(dof)) for dof in self._dofs], dtype=np.int64)
        if len(self._dofs):
            self._mass, self._inertia, self._armature = map(batch.expand, _INERTIAL)
            self._diagonal = batch.expand("dof_M0")

    def update(self) -> None:
        """Work the constant out anew, for every world."""
        if len(self._dofs):
            inertial = np.concatenate((self._mass[..., None], self._inertia), -1)  # [N, nbody, 4]
            own = inertial[:, self._bodies, self._kinds]
            self._diagonal[:, self._dofs] = own + self._armature[:, self._dofs]


def world_model(model: mujoco.MjModel, per_world: tuple[str, ...]) -> mujoco.MjModel:
    """A model with one world's own fields, such that `mj_step` does with it what the backend does."""
    own = _engine_model(model, per_world)
    if {*_INERTIAL} & {*per_world}:
        for dof in np.flatnonzero(own.dof_simplenum):
            body, kind = own.dof_bodyid[dof], _inertia_of_dof(own, int(dof))
            inertial = own.body_inertia[body, kind - 1] if kind else own.body_mass[body]
            own.dof_M0[dof] = inertial + own.dof_armature[dof]
    return own


def _inertia_of_dof(model: mujoco.MjModel, dof: int) -> int:
    """What resists a simple dof: 0 the body's mass, 1 to 3 its inertia around x, y or z."""
    joint = model.dof_jntid[dof]
    number, kind = dof - model.jnt_dofadr[joint], model.jnt_type[joint]
    if kind == _JOINT.mjJNT_FREE:
        return max(0, int(number) - 2)
    if kind == _JOINT.mjJNT_SLIDE:
        return 0
    if kind == _JOINT.mjJNT_BALL:
        return 1 + int(number)
    return 1 + int(np.abs(model.jnt_axis[joint]).argmax())


def _engine_model(model: mujoco.MjModel, per_world: tuple[str, ...]) -> mujoco.MjModel:
    """A copy of `model` that keeps a NaN instead of resetting the world, with shortcuts only where due."""
    own = honours.prepared(model, "mujoco")
    own.opt.disableflags |= int(_DISABLE.mjDSBL_AUTORESET)
    if model.ntree == 1:
        # One kinematic tree is one constraint island: looking for more costs 5 % and finds none.
        own.opt.disableflags |= int(_DISABLE.mjDSBL_ISLAND)
    if "body_ipos" in per_world:
        # Where the compiler saw that two frames coincide, the engine does not look at their offset again.
        frames = own.body_sameframe
        frames[frames == _SAME.mjSAMEFRAME_BODY] = _SAME.mjSAMEFRAME_BODYROT
        for frames in (own.geom_sameframe, own.site_sameframe):
            frames[frames == _SAME.mjSAMEFRAME_INERTIA] = _SAME.mjSAMEFRAME_INERTIAROT
    return own
