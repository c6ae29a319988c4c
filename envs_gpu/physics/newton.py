"""Newton, the engine of Isaac Lab 3, with its MuJoCo solver.

Newton reads the scene's MJCF into a model of its own and compiles that for MuJoCo Warp anew. On the way it
drops sensors, and changes numbers, which `_newton_import` gives back. Newton's model steps, and a model of
MuJoCo Warp beside it, compiled from the scene as it is, senses.
"""

from __future__ import annotations

import warnings

import envs_gpu.physics._quiet_warp  # noqa: F401 - before anything that imports Warp

# isort: split
import mujoco
import mujoco_warp as mjw
import newton
import torch
import warp as wp
from newton.solvers import SolverMuJoCo
from torch import Tensor

from envs_gpu import bridge
from envs_gpu.physics import backend, honours
from envs_gpu.physics._capacity import Capacity, overflow_of
from envs_gpu.physics._newton_import import check_pairs, restored
from envs_gpu.physics._solver import with_newton
from envs_gpu.physics.base import PhysicsOptions, nominal
from envs_gpu.physics.warp import WarpPhysics

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
        UnsupportedModelError: Newton cannot read the scene, or makes something of it that cannot be mended.
    """

    name = "newton"

    def __init__(
        self, model: mujoco.MjModel, num_worlds: int, device: torch.device, options: PhysicsOptions
    ) -> None:
        super().__init__(model, num_worlds, device, options)
        with wp.ScopedDevice(self._wp_device):
            assert self.room is not None
            room = self.room
            assert room is not None
            with honours.refusing(model, self.name):
                imported = _import(options.mjcf, room)
            own, geoms = restored(with_newton(honours.prepared(model, self.name)), imported)
            with honours.refusing(model, self.name):
                self._stepping = mjw.put_model(own)
            check_pairs(model, geoms, self._model, self._stepping)
            self._stepping.opt.warn_overflow = 0
            # Friction losses, limits and the like are where the scene has them, so its room is enough.
            self._worlds = mjw.put_data(
                own, mujoco.MjData(own), num_worlds, nconmax=room.contacts, njmax=room.constraints
            )
            self._geoms = torch.tensor(geoms, device=device)
            self._give_rows(self._stepping)
        self._newton_overflow = bridge.warp_to_torch(self._worlds.overflow)
        wp.synchronize_device(self._wp_device)

    def overflow_bits(self) -> Tensor:
        return super().overflow_bits() | overflow_of(self._newton_overflow)

    def clear_overflow(self) -> None:
        super().clear_overflow()
        self._newton_overflow.zero_()

    def randomize(self, field: str, values: Tensor, worlds: Tensor) -> None:
        sensing, stepping = self._per_world[field]
        held = self._as_held(field, values, self._stepping)
        sensing[worlds], stepping[worlds] = values.to(sensing.dtype), held.to(stepping.dtype)

    def _as_held(self, field: str, values: Tensor, model: mjw.Model) -> Tensor:
        if not field.startswith("geom_") or model is self._model:
            return values
        return values.index_select(values.dim() - nominal(self.model, field).ndim, self._geoms)

    def _advance(self, substeps: int) -> None:
        ours, theirs = self._data, self._worlds
        for name in _STATE:
            wp.copy(getattr(theirs, name), getattr(ours, name))
        for _ in range(substeps):
            mjw.step(self._stepping, theirs)
        for name in _STATE:
            wp.copy(getattr(ours, name), getattr(theirs, name))
        self._evaluate_sensors()


def _import(mjcf: str, room: Capacity) -> mujoco.MjModel:
    """What Newton's solver compiles from one copy of the scene.

    Raises:
        ValueError: Newton cannot read it; the reason is its own.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it skips: `restored` looks at what is left
            robot = newton.ModelBuilder()
            SolverMuJoCo.register_custom_attributes(robot)
            robot.add_mjcf(mjcf.replace(' solver="PGS"', ""), ctrl_direct=True)  # a name that it cannot read
            worlds = newton.ModelBuilder()
            SolverMuJoCo.register_custom_attributes(worlds)
            worlds.replicate(robot, 1)
            solver = SolverMuJoCo(
                worlds.finalize(),
                nconmax=room.contacts,
                njmax=room.constraints,
                use_mujoco_cpu=True,
                enable_sleeping=False,
                kinematic_switchable_roots=False,  # it would add an equality that is never active
            )
    # Newton's importer and MuJoCo's compiler fail in many ways, and each says what it lacks.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"its importer says: {reason}") from error
    imported: mujoco.MjModel = solver.mj_model
    return imported
