"""C MuJoCo on all cores through `mujoco.rollout`; the referee that other backends are checked against."""

from __future__ import annotations

import copy
import os

import mujoco
import numpy as np
import torch
from mujoco import rollout
from torch import Tensor

from envs_gpu.physics import backend
from envs_gpu.physics.base import Physics, PhysicsOptions, PhysicsState

FULLPHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS


def available_cores() -> int:
    """Cores this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@backend("mujoco")
class MujocoPhysics(Physics):
    """Worlds as rows of one float64 array that numpy and torch share.

    Args:
        model: the compiled scene.
        num_worlds: N.
        device: must be the CPU.
        options: `num_threads`.

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
        self._stepper = _variant(model, disable=mujoco.mjtDisableBit.mjDSBL_SENSOR)
        # One Euler step from a state evaluates its sensors; where that step would lead is thrown away.
        self._prober = _variant(model, disable=mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
        self._prober.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER

        # A pool of one thread would only add a hand-over to every call.
        self._pool = rollout.Rollout(nthread=self.num_threads if self.num_threads > 1 else 0)
        self._scratch = [mujoco.MjData(model) for _ in range(self.num_threads)]
        num_state = mujoco.mj_stateSize(model, FULLPHYSICS)
        self._full = np.zeros((num_worlds, num_state))
        mujoco.mj_getState(model, self._scratch[0], self._full[0], FULLPHYSICS)
        self._full[1:] = self._full[0]
        self._ctrl = np.zeros((num_worlds, 1, model.nu))
        self._sensordata = np.zeros((num_worlds, 1, model.nsensordata))
        self._probed = np.zeros((num_worlds, 1, num_state))
        self._path = np.zeros((num_worlds, 1, num_state))  # [N, substeps, num_state]
        self.state = self._views()
        self._evaluate_sensors(slice(None))

    def step(self, ctrl: Tensor, substeps: int) -> None:
        if self._path.shape[1] != substeps:
            self._path = np.zeros((self.num_worlds, substeps, self._full.shape[1]))
        self.state.ctrl.copy_(ctrl)
        repeated = np.repeat(self._ctrl, substeps, axis=1)
        self._roll(self._stepper, self._full, repeated, self._path, None)
        self._full[:] = self._path[:, -1]
        self._evaluate_sensors(slice(None))

    def set_state(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        rows = mask.nonzero().squeeze(-1)
        if not len(rows):
            return
        self._full[rows.numpy()] = 0.0
        self._ctrl[rows.numpy()] = 0.0
        self.state.qpos[rows] = qpos[rows].double()
        self.state.qvel[rows] = qvel[rows].double()
        self._evaluate_sensors(rows.numpy())

    def state_dict(self) -> dict[str, Tensor]:
        arrays = {"full": self._full, "ctrl": self._ctrl, "sensordata": self._sensordata}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._full[:] = state["full"].numpy()
        self._ctrl[:] = state["ctrl"].numpy()
        self._sensordata[:] = state["sensordata"].numpy()

    def close(self) -> None:
        self._pool.close()

    def _views(self) -> PhysicsState:
        # mjSTATE_FULLPHYSICS lays a world out as time, qpos, qvel, act.
        nq, nv, na = self.model.nq, self.model.nv, self.model.na
        full = torch.from_numpy(self._full)
        return PhysicsState(
            qpos=full[:, 1 : 1 + nq],
            qvel=full[:, 1 + nq : 1 + nq + nv],
            act=full[:, 1 + nq + nv : 1 + nq + nv + na],
            ctrl=torch.from_numpy(self._ctrl)[:, 0],
            sensordata=torch.from_numpy(self._sensordata)[:, 0],
            time=full[:, 0],
        )

    def _evaluate_sensors(self, rows: slice | np.ndarray) -> None:
        if not self.model.nsensordata:
            return
        if isinstance(rows, slice):
            self._roll(self._prober, self._full, self._ctrl, self._probed, self._sensordata)
            return
        full = self._full[rows]
        sensordata = self._sensordata[rows]
        self._roll(self._prober, full, self._ctrl[rows], self._probed[: len(full)], sensordata)
        self._sensordata[rows] = sensordata

    def _roll(
        self,
        model: mujoco.MjModel,
        start: np.ndarray,
        ctrl: np.ndarray,
        path: np.ndarray,
        sensordata: np.ndarray | None,
    ) -> None:
        self._pool.rollout(
            [model] * len(start),
            self._scratch,
            start,
            ctrl,
            skip_checks=True,
            nstep=ctrl.shape[1],
            state=path,
            sensordata=sensordata,
        )


def _variant(model: mujoco.MjModel, disable: mujoco.mjtDisableBit) -> mujoco.MjModel:
    """A copy of `model` with one more feature disabled, that keeps a NaN instead of resetting the world."""
    variant = copy.copy(model)
    variant.opt.disableflags |= int(disable) | int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return variant
