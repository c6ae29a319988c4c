"""What `pi-bench sim` runs in a fresh process: one task on one backend, three kinds of turns that alternate.

Letters: N worlds, S substeps of a control step, K control steps of a block.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import mujoco
import numpy as np
import torch
from mujoco import rollout
from torch import Tensor

from envs_gpu.make import make_env
from envs_gpu.physics.mujoco import available_cores
from envs_gpu.sim_env import SimEnv

BLOCK_STEPS = 10
"""K: so few that worlds which only the env restarts do not get far from the others' states."""
SPREAD_STEPS, MAX_SCOUTS = 200, 256
FULLPHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS


class PairBench:
    """The env, and what it is compared with: its own physics, and `mujoco.rollout` where the backend is C.

    Args:
        task: the task's name.
        backend: the backend's name.
        num_envs: N.
        device: `cpu` or `cuda`.
        compiled: the task's functions run through `torch.compile`, as training runs them.
    """

    def __init__(self, task: str, backend: str, num_envs: int, device: str, compiled: bool) -> None:
        self.device = torch.device(device)
        env = make_env(task, backend=backend, num_envs=num_envs, device=self.device, compiled=compiled)
        self.env = cast(SimEnv, env)
        low, high = self.env.task.action_low, self.env.task.action_high
        generator = torch.Generator().manual_seed(1)
        unit = torch.rand(BLOCK_STEPS, num_envs, len(low), generator=generator).to(self.device)
        self.actions = torch.lerp(low, high, unit)  # [K, N, A]
        self.ctrl = [self.env.task.control(action) for action in self.actions]
        self.rollout = _Rollout(self.env, self.ctrl) if backend == "mujoco" else None
        _spread(self.env, task)

    def warm_up(self) -> None:
        """Run everything once, restarts included, so that nothing is built or compiled any more."""
        for _ in range(2):
            self.block()
        one = torch.arange(self.env.num_envs, device=self.device) == 0
        state = self.env.state_dict()
        last_step = self.env.spec.max_episode_steps - 1
        late = {"episode_step": torch.where(one, last_step, state["episode_step"])}
        self.env.load_state_dict(state | late)
        self.block()

    def block(self) -> dict[str, float]:
        """Seconds of K control steps of each kind, all from the same state; the env's leads to the next."""
        physics = self.env.physics
        before = physics.state_dict()
        seconds = {}
        if self.rollout:
            self.rollout.start_from(self.env)
        seconds["env"] = self._timed(lambda: [self.env.step(action) for action in self.actions])
        after = physics.state_dict()
        physics.load_state_dict(before)
        substeps = self.env.task.substeps
        seconds["physics"] = self._timed(lambda: [physics.step(ctrl, substeps) for ctrl in self.ctrl])
        physics.load_state_dict(after)
        if self.rollout:
            seconds["rollout"] = self._timed(self.rollout.run)
        return seconds

    def round(self, seconds: float) -> dict[str, float]:
        """Blocks until the env has stepped for `seconds`: the sums, and the control steps of each kind."""
        total: dict[str, float] = {"steps": 0}
        while total.get("env", 0.0) < seconds:
            for kind, duration in self.block().items():
                total[kind] = total.get(kind, 0.0) + duration
            total["steps"] += BLOCK_STEPS
        return total

    def _timed(self, function: Callable[[], Any]) -> float:
        self._synchronize()
        began_s = time.perf_counter()
        function()
        self._synchronize()
        return time.perf_counter() - began_s

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Rollout:
    """`mujoco.rollout` alone: nothing is sensed, observed or reset."""

    def __init__(self, env: SimEnv, ctrl: list[Tensor]) -> None:
        self.model = copy.copy(env.physics.model)
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
        num_threads = min(available_cores(), env.num_envs)
        self.scratch = [mujoco.MjData(self.model) for _ in range(num_threads)]
        self.pool = rollout.Rollout(nthread=num_threads)
        held = torch.stack(ctrl, 1).repeat_interleave(env.task.substeps, dim=1)
        self.ctrl = held.double().numpy()  # [N, K * S, nu]
        num_state = mujoco.mj_stateSize(self.model, FULLPHYSICS)
        self.path = np.zeros((*self.ctrl.shape[:2], num_state))

    def start_from(self, env: SimEnv) -> None:
        state = env.physics.state
        columns = (state.time[:, None], state.qpos, state.qvel, state.act)  # how FULLPHYSICS lays them out
        self.start = torch.cat(columns, -1).double().numpy()

    def run(self) -> None:
        self.pool.rollout(
            [self.model] * len(self.start),
            self.scratch,
            self.start,
            self.ctrl,
            skip_checks=True,
            nstep=self.ctrl.shape[1],
            state=self.path,
        )


def _spread(env: SimEnv, task: str) -> None:
    """Start from where random actions lead, with episodes at every stage: the same states on every backend.

    At most 256 scouts on C MuJoCo walk there; more worlds share their states.
    """
    num_scouts = min(env.num_envs, MAX_SCOUTS)
    scouts = cast(SimEnv, make_env(task, backend="mujoco", num_envs=num_scouts, device=torch.device("cpu")))
    low, high = scouts.task.action_low, scouts.task.action_high
    generator = torch.Generator().manual_seed(2)
    for _ in range(SPREAD_STEPS):
        scouts.step(torch.lerp(low, high, torch.rand(num_scouts, len(low), generator=generator)))

    def for_all(value: Tensor) -> Tensor:
        return value[torch.arange(env.num_envs) % num_scouts].to(env.device)

    everybody = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    env.place(everybody, for_all(scouts.physics.state.qpos), for_all(scouts.physics.state.qvel))
    env.load_state_dict(env.state_dict() | {"episode_step": for_all(scouts.state_dict()["episode_step"])})
    scouts.close()


def rounds(settings: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Sums of each round; `restarts` is the mean number of worlds that a control step restarts."""
    keys = ("task", "backend", "num_envs", "device", "compiled")
    bench = PairBench(**{key: settings[key] for key in keys})
    bench.warm_up()
    for _ in range(settings["rounds"]):
        bench.env.pop_metrics()
        total = bench.round(settings["seconds"])
        episodes = bench.env.pop_metrics()["episode/count"]
        yield total | {"restarts": episodes / total["steps"]}


if __name__ == "__main__":
    torch.set_num_threads(1)  # as training does
    for sums in rounds(json.loads(sys.argv[1])):
        print(json.dumps(sums), flush=True)
