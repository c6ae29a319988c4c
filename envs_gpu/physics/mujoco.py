"""C MuJoCo on all cores through `mujoco.rollout`; the referee that other backends are checked against."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
import torch
from mujoco import rollout
from torch import Tensor

from envs_gpu.physics import backend
from envs_gpu.physics.base import Physics, PhysicsOptions, PhysicsState

FULLPHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS
MIN_BLOCK, BLOCKS_PER_THREAD = 4, 2

Rows = slice | np.ndarray


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
        self._stepper = _variant(model, mujoco.mjtDisableBit.mjDSBL_SENSOR)
        # One Euler step from a state evaluates its sensors; where that step would lead is thrown away.
        self._prober = _variant(model, mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
        self._prober.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER

        self._runners = [_Runner(model) for _ in range(self.num_threads)]
        # The calling thread works too: its caches stay warm, and there is one thread less to wake.
        self._helpers = ThreadPoolExecutor(max(self.num_threads - 1, 1), "physics")
        self._blocks = _blocks(num_worlds, self.num_threads)
        num_state = mujoco.mj_stateSize(model, FULLPHYSICS)
        self._full = np.zeros((num_worlds, num_state))
        mujoco.mj_getState(model, mujoco.MjData(model), self._full[0], FULLPHYSICS)
        self._full[1:] = self._full[0]
        self._ctrl = np.zeros((num_worlds, 1, model.nu))
        self._sensordata = np.zeros((num_worlds, 1, model.nsensordata))
        self._hold_for(1)
        self.state = self._views()
        self._on_all_cores(self._evaluate_sensors, self._blocks)

    def step(self, ctrl: Tensor, substeps: int) -> None:
        if self._path.shape[1] != substeps:
            self._hold_for(substeps)
        self.state.ctrl.copy_(ctrl)
        self._held[:] = self._ctrl

        def advance(runner: _Runner, rows: Rows) -> None:
            full, path = self._full[rows], self._path[rows]
            runner.roll(self._stepper, full, self._held[rows], path, None)
            full[:] = path[:, -1]
            _spoil_stopped(full, path)
            self._evaluate_sensors(runner, rows)

        self._on_all_cores(advance, self._blocks)

    def set_state(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        rows = mask.nonzero().squeeze(-1).numpy()
        if not len(rows):
            return
        self._full[rows] = 0.0
        self._ctrl[rows] = 0.0
        self.state.qpos[rows] = qpos[rows].double()
        self.state.qvel[rows] = qvel[rows].double()
        blocks = [rows[block] for block in _blocks(len(rows), self.num_threads)]
        self._on_all_cores(self._evaluate_sensors, blocks)

    def state_dict(self) -> dict[str, Tensor]:
        arrays = {"full": self._full, "ctrl": self._ctrl, "sensordata": self._sensordata}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._full[:] = state["full"].numpy()
        self._ctrl[:] = state["ctrl"].numpy()
        self._sensordata[:] = state["sensordata"].numpy()

    def close(self) -> None:
        self._helpers.shutdown()
        for runner in self._runners:
            runner.close()

    def _hold_for(self, substeps: int) -> None:
        self._path = np.zeros((self.num_worlds, substeps, self._full.shape[1]))
        self._held = np.zeros((self.num_worlds, substeps, self.model.nu))

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

    def _evaluate_sensors(self, runner: _Runner, rows: Rows) -> None:
        if self.model.nsensordata:
            full, sensordata = self._full[rows], self._sensordata[rows]
            runner.roll(self._prober, full, self._ctrl[rows], np.empty_like(full)[:, None], sensordata)
            self._sensordata[rows] = sensordata

    def _on_all_cores(self, work: Callable[[_Runner, Rows], None], blocks: Sequence[Rows]) -> None:
        """Let every thread take the next block until none is left."""
        queue = iter(blocks)

        def take_turns(runner: _Runner) -> None:
            for rows in queue:
                work(runner, rows)

        idle = self._runners[1 : len(blocks)]
        helping = [self._helpers.submit(take_turns, runner) for runner in idle]
        take_turns(self._runners[0])
        for helper in helping:
            helper.result()


class _Runner:
    """What one thread needs to roll worlds forward, without the GIL."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._scratch = [mujoco.MjData(model)]
        self._rollout = rollout.Rollout(nthread=0)

    def roll(
        self,
        model: mujoco.MjModel,
        start: np.ndarray,
        ctrl: np.ndarray,
        path: np.ndarray,
        sensordata: np.ndarray | None,
    ) -> None:
        """Roll `start` `[n, state]` under `ctrl` `[n, S, nu]`; write `path` and `sensordata` `[n, S, …]`."""
        self._rollout.rollout(
            [model] * len(start),
            self._scratch,
            start,
            ctrl,
            skip_checks=True,
            nstep=ctrl.shape[1],
            state=path,
            sensordata=sensordata,
        )

    def close(self) -> None:
        """Release the simulator's memory."""
        self._rollout.close()


def _blocks(num_rows: int, num_threads: int) -> list[slice]:
    """Rows in pieces, two for each thread where there are many: the second lets a fast one take over."""
    size = max(MIN_BLOCK, math.ceil(num_rows / (BLOCKS_PER_THREAD * num_threads)))
    return [slice(first, first + size) for first in range(0, num_rows, size)]


def _spoil_stopped(full: np.ndarray, path: np.ndarray) -> None:
    """Make the worlds NaN whose rollout stopped: time stands still in their `path` `[n, S, state]`.

    `mujoco.rollout` goes no further than C's first warning (an acceleration beyond `mjMAXVAL`, a singular
    inertia) and repeats the state from there on, so they would pass for worlds that are well.
    """
    if path.shape[1] > 1:
        full[path[:, -1, 0] == path[:, -2, 0], 1:] = np.nan


def _variant(model: mujoco.MjModel, disable: mujoco.mjtDisableBit) -> mujoco.MjModel:
    """A copy of `model` with one more feature disabled, that keeps a NaN instead of resetting the world."""
    variant = copy.copy(model)
    variant.opt.disableflags |= int(disable) | int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    if model.ntree == 1:
        # One kinematic tree is one constraint island: looking for more costs 5 % and finds none.
        variant.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    return variant
