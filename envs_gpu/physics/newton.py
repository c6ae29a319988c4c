"""Newton, the engine of Isaac Lab 3, with its MuJoCo solver.

Newton reads the scene's MJCF into a model of its own and compiles that for MuJoCo Warp anew. On the way it
drops sensors, and the margin and some of the softness of joint limits; the latter two are given back. MJCF
as text has six digits, and so have its masses. Newton's model steps, and a model of MuJoCo Warp beside it,
compiled from the scene as it is, senses.
"""

from __future__ import annotations

import re
from typing import Any

import envs_gpu.physics._quiet_warp  # noqa: F401 - before anything that imports Warp

# isort: split
import mujoco
import mujoco_warp as mjw
import newton
import numpy as np
import torch
import warp as wp
from newton.solvers import SolverMuJoCo
from torch import Tensor

from envs_gpu import bridge
from envs_gpu.physics import backend
from envs_gpu.physics._capacity import capacity, overflow_of
from envs_gpu.physics._solver import without_pgs
from envs_gpu.physics.base import PhysicsOptions, UnsupportedModelError
from envs_gpu.physics.warp import WarpPhysics

_SIZES = ("nq", "nv", "nu", "na")
_DYNAMICS = ("body_mass", "dof_armature", "dof_damping", "jnt_stiffness", "actuator_gear", "dof_M0")
"""What decides how a model moves: where Newton's has other numbers it is another robot."""
_DROPPED = ("jnt_margin", "jnt_solref", "jnt_solimp", "jnt_range")
"""What the importer loses of joint limits, given back by the scene."""
_STATE = ("qpos", "qvel", "act", "ctrl", "time", "qacc_warmstart")


@backend("newton")
class NewtonPhysics(WarpPhysics):
    """Worlds in Warp's float32 arrays, which torch views; step and restart are captured graphs.

    Args:
        model: the compiled scene.
        num_worlds: N.
        device: `cpu` or `cuda`.
        options: `mjcf`, the same scene as text; `per_world`, `max_contacts`, `max_constraints`.

    Raises:
        UnsupportedModelError: Newton cannot read the scene, or makes another robot of it.
    """

    name = "newton"

    def __init__(
        self, model: mujoco.MjModel, num_worlds: int, device: torch.device, options: PhysicsOptions
    ) -> None:
        super().__init__(model, num_worlds, device, options)
        with wp.ScopedDevice(self._wp_device):
            room = capacity(model, self._model.nxn_geom_pair_filtered.numpy(), options)
            # `njmax` also holds the equality that Newton adds.
            self._solver = _make_solver(model, num_worlds, options.mjcf, room.contacts, room.constraints + 6)
            _check_same_robot(model, self._solver.mj_model)
            self._solver.mjw_model.opt.timestep.fill_(model.opt.timestep)
            for name in _DROPPED:
                theirs = getattr(self._solver.mjw_model, name)
                theirs.assign(np.broadcast_to(getattr(model, name), theirs.numpy().shape))
            self._solver.mjw_model.opt.warn_overflow = 0
            # Newton orders a body's principal axes in another way.
            self._principal_axes = torch.tensor(_principal_axes(model, self._solver.mjw_model), device=device)
            if options.per_world:
                _check_same_order(model, self._solver.mj_model)
                self._give_rows(self._solver.mjw_model)
        self._newton_overflow = bridge.warp_to_torch(self._solver.mjw_data.overflow)
        wp.synchronize_device(self._wp_device)

    def overflow_bits(self) -> Tensor:
        return super().overflow_bits() | overflow_of(self._newton_overflow)

    def clear_overflow(self) -> None:
        super().clear_overflow()
        self._newton_overflow.zero_()

    def randomize(self, field: str, values: Tensor, worlds: Tensor) -> None:
        sensing, stepping = self._per_world[field]
        held = self._as_held(field, values, self._solver.mjw_model)
        sensing[worlds], stepping[worlds] = values.to(sensing.dtype), held.to(stepping.dtype)

    def _as_held(self, field: str, values: Tensor, model: mjw.Model) -> Tensor:
        if field != "body_inertia" or model is self._model:
            return values
        return (self._principal_axes * values.double()[..., None, :]).sum(-1)

    def _advance(self, substeps: int) -> None:
        ours, theirs = self._data, self._solver.mjw_data
        for name in _STATE:
            wp.copy(getattr(theirs, name), getattr(ours, name))
        for _ in range(substeps):
            mjw.step(self._solver.mjw_model, theirs)
        for name in _STATE:
            wp.copy(getattr(ours, name), getattr(theirs, name))
        self._evaluate_sensors()


def _make_solver(
    model: mujoco.MjModel, num_worlds: int, mjcf: str, num_contacts: int, num_constraints: int
) -> Any:
    """Newton's solver of `num_worlds` copies of the scene, with the scene's own solver settings."""
    options = ("integrator", "cone", "solver", "jacobian", "iterations", "ls_iterations")
    settings: dict[str, Any] = {name: int(getattr(without_pgs(model).opt, name)) for name in options}
    settings |= {name: float(getattr(model.opt, name)) for name in ("tolerance", "ls_tolerance", "impratio")}
    settings |= {name: float(getattr(model.opt, name)) for name in ("density", "viscosity")}
    worlds = newton.ModelBuilder()
    try:
        SolverMuJoCo.register_custom_attributes(worlds)
        robot = newton.ModelBuilder()
        SolverMuJoCo.register_custom_attributes(robot)
        robot.rigid_gap = 0.0  # MJCF's default; contacts further away than their margin exert no force
        robot.add_mjcf(mjcf.replace(' solver="PGS"', ""), ctrl_direct=True)  # a name that it cannot read
        worlds.replicate(robot, num_worlds)
        return SolverMuJoCo(worlds.finalize(), nconmax=num_contacts, njmax=num_constraints, **settings)
    # Newton's importer and MuJoCo's compiler fail in many ways, and each says what it lacks.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UnsupportedModelError(f"newton cannot read this scene: {reason}") from error


def _check_same_robot(scene: mujoco.MjModel, imported: mujoco.MjModel) -> None:
    for name in _SIZES:
        if (ours := getattr(scene, name)) != (theirs := getattr(imported, name)):
            raise UnsupportedModelError(f"newton makes {name} = {theirs} of a scene with {name} = {ours}")
    for name in _DYNAMICS:
        ours, theirs = getattr(scene, name), getattr(imported, name)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
            raise UnsupportedModelError(f"newton imports this scene with another {name}")


def _principal_axes(scene: mujoco.MjModel, imported: mjw.Model) -> np.ndarray:
    """`[body, 3, 3]`: moments around the scene's principal axes -> moments around the imported model's."""
    turned = np.zeros((scene.nbody, 3, 3))
    frames = imported.body_iquat.numpy()[0].astype(float)
    frames /= np.linalg.norm(frames, axis=-1, keepdims=True)
    for body in range(scene.nbody):
        ours, theirs = np.zeros(9), np.zeros(9)
        mujoco.mju_quat2Mat(ours, scene.body_iquat[body])
        mujoco.mju_quat2Mat(theirs, frames[body])
        turned[body] = np.square(theirs.reshape(3, 3).T @ ours.reshape(3, 3))
    return turned


def _check_same_order(scene: mujoco.MjModel, imported: mujoco.MjModel) -> None:
    """Check by name that rows of the scene's fields are rows of Newton's; its names end in the scene's.

    Raises:
        UnsupportedModelError: Newton has other elements or another order: values would go to the wrong ones.
    """
    for kind, number in (("body", scene.nbody), ("geom", scene.ngeom), ("joint", scene.njnt)):
        ours, theirs = ([getattr(model, kind)(i).name for i in range(number)] for model in (scene, imported))
        for name, label in zip(ours, theirs, strict=True):
            if not re.search(rf"(^|[/_]){re.escape(name)}(_\d+)?$", label):
                problem = f"has {label!r} where the scene has {kind} {name!r}"
                raise UnsupportedModelError(f"newton {problem}: its worlds cannot be randomized")
    if not np.array_equal(scene.actuator_trnid, imported.actuator_trnid):
        raise UnsupportedModelError("newton orders the actuators otherwise: its worlds cannot be randomized")
