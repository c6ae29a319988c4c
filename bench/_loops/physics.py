"""Physics alone: `mujoco.rollout` on all cores under random actions, to compare training loops with.

Letters: N worlds, T control steps of an iteration, S substeps of a control step.
"""

from __future__ import annotations

import copy
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import rollout

from bench._loops import Loop
from envs_gpu.make import make_task
from envs_gpu.models import compile_model
from envs_gpu.physics.mujoco import available_cores
from envs_gpu.random import WorldRandom
from envs_gpu.tasks.base import Episode
from envs_gpu.user_model import UserModel
from pi_incubator.config import ExperimentConfig
from pi_incubator.envs import user_model

FULLPHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS


class PhysicsLoop(Loop):
    """One iteration simulates T control steps of N worlds from the start of an episode, in one call.

    There are no sensors, observations, rewards or resets. A policy may lead to states with more or fewer
    contacts than random actions do, so this speed is a guide, not an upper limit for a training loop.
    """

    def __init__(
        self, task: str, num_envs: int, horizon: int, seed: int, robot: UserModel | None = None
    ) -> None:
        rules = make_task(task, robot)
        model = compile_model(rules.scene(), rules.source or f"task {task}")
        rules.attach(model, torch.device("cpu"))
        self.model = copy.copy(model)
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
        self.num_threads = min(available_cores(), num_envs)
        self.scratch = [mujoco.MjData(model) for _ in range(self.num_threads)]
        self.pool = rollout.Rollout(nthread=self.num_threads)
        self.start = _initial_states(rules, model, num_envs, seed)  # [N, state]
        self.ctrl = _random_controls(rules, num_envs, horizon, seed)  # [N, T * S, nu]
        num_state = mujoco.mj_stateSize(model, FULLPHYSICS)
        self.path = np.zeros((*self.ctrl.shape[:2], num_state))  # [N, T * S, state]
        self.env_steps = num_envs * horizon
        self.facts = {"threads": self.num_threads, "num_worlds": num_envs, "substeps": rules.substeps}

    def iterate(self) -> int:
        self.pool.rollout(
            [self.model] * len(self.start),
            self.scratch,
            self.start,
            self.ctrl,
            skip_checks=True,
            nstep=self.ctrl.shape[1],
            state=self.path,
        )
        return self.env_steps


def make(settings: dict[str, Any]) -> PhysicsLoop:
    """The loop with the task and the sizes of a config given as JSON types."""
    cfg = ExperimentConfig.model_validate(settings)
    num_steps = max(1, cfg.steps_per_iteration // cfg.env.num_envs)
    sizes = (cfg.env.num_envs, num_steps, cfg.experiment.seed)
    return PhysicsLoop(cfg.env.name, *sizes, user_model(cfg.env))


def _initial_states(rules: Any, model: mujoco.MjModel, num_envs: int, seed: int) -> np.ndarray:
    """States at the start of an episode `[N, state]`, as the task draws them."""
    random = WorldRandom(seed, num_envs, torch.device("cpu"))
    qpos, qvel = rules.initial_state(Episode.first(random))
    data = mujoco.MjData(model)
    start = np.zeros((num_envs, mujoco.mj_stateSize(model, FULLPHYSICS)))
    for row, data.qpos[:], data.qvel[:] in zip(start, qpos.numpy(), qvel.numpy(), strict=True):
        mujoco.mj_getState(model, data, row, FULLPHYSICS)
    return start


def _random_controls(rules: Any, num_envs: int, horizon: int, seed: int) -> np.ndarray:
    """Uniform actions through the task's own mapping, each held for a control step `[N, T * S, nu]`."""
    random = torch.Generator().manual_seed(seed)
    uniform = torch.rand(horizon, num_envs, len(rules.action_low), generator=random)
    actions = torch.lerp(rules.action_low, rules.action_high, uniform)
    ctrl = torch.stack([rules.control(action) for action in actions], dim=1)  # [N, T, nu]
    return ctrl.repeat_interleave(rules.substeps, dim=1).double().numpy()
