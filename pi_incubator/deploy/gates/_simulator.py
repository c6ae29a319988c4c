"""The simulator's process of the gate `sim_to_sim`: C MuJoCo, and robots whose policies are elsewhere.

Reads a request as JSON from the standard input, and writes what it found as one line of JSON.

Letters: N worlds, D width of the readings, A actions.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.disturbance import Disturbance, DisturbedPhysics
from envs_gpu.engine_log import EngineLog
from envs_gpu.errors import BrokenWorldsError
from envs_gpu.interface import PolicyInterface
from envs_gpu.sim_env import SimEnv
from pi_incubator.config import load_config
from pi_incubator.deploy.graph import sensor_readings
from pi_incubator.deploy.session import Array, action_behind
from pi_incubator.envs import evaluation_env
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.runtime import read_bundle
from pi_incubator.runtime.links import RobotLink

ANSWER_S = 60.0
"""A policy that says nothing for so long is gone."""


class Robots:
    """The worlds' robots as a policy for `evaluate`: what they measure goes out, targets come back.

    Args:
        links: one a world, N.
        interface: of the worlds.
        noise: `[D]` half the width of the uniform noise on what is measured.
        seed: of the noise.
    """

    def __init__(self, links: list[RobotLink], interface: PolicyInterface, noise: Array, seed: int) -> None:
        self._links, self._interface, self._noise = links, interface, noise
        self._random = np.random.default_rng(seed)

    def initial_state(self, num_worlds: int) -> Tensor:
        """Whether a world is in the midst of an episode, `[num_worlds, 1]`: none is."""
        return torch.zeros(num_worlds, 1)

    def mean(self, obs: TensorDict, state: Tensor) -> tuple[Tensor, Tensor]:
        """Observation groups -> actions `[N, A]`; every world is in an episode now."""
        readings = sensor_readings(obs["policy"], self._interface).numpy()
        noise = self._noise * self._random.uniform(-1, 1, readings.shape)
        for link, row, runs in zip(self._links, (readings + noise).astype(np.float32), state, strict=True):
            if not runs:
                link.begin_episode()
            link.send(row)
        targets = [torch.from_numpy(self._receive(link).copy()) for link in self._links]
        return action_behind(torch.stack(targets), self._interface.targets), torch.ones_like(state)

    @staticmethod
    def _receive(link: RobotLink) -> Array:
        target = link.receive(ANSWER_S)
        if target is None:
            raise SystemExit(f"no target has come for {ANSWER_S:g} s")
        return target


def simulate(request: dict[str, Any]) -> dict[str, Any]:
    """Run the request's episodes.

    Returns:
        Their mean `return`, None where too many worlds broke for one; `broken_episodes`, which ended because
        C MuJoCo blew up, None where too many did; and the `latency_ms` that they had.
    """
    cfg = load_config(request["config"], ["env.backend=mujoco", "compute.device=cpu"])
    contract = read_bundle(request["bundle"]).contract
    links = [RobotLink(url, contract) for url in request["links"]]
    held = Disturbance.none(len(links), torch.tensor(contract.safe_target, dtype=torch.float64))
    late = replace(held, delay_s=torch.full_like(held.delay_s, request["latency_s"]))
    env = evaluation_env(cfg, len(links), torch.device("cpu"), disturbance=late)
    assert isinstance(env, SimEnv)  # the command has made sure
    assert isinstance(env.physics, DisturbedPhysics)
    robots = Robots(links, env.interface(), np.array(request["noise"]), request["seed"])
    latency_s = env.physics.delay_steps[0].item() * env.physics.model.opt.timestep
    found: dict[str, Any] = {"return": None, "broken_episodes": None, "latency_ms": 1e3 * latency_s}
    try:
        episodes = evaluate(env, robots, request["num_episodes"], request["seed"]).episodes
    except BrokenWorldsError as error:
        return found | {"broken": str(error)}
    broken = int((episodes["physics/broken"] > 0).sum())
    return found | {"return": episodes["return"].mean().item(), "broken_episodes": broken}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    with EngineLog(Path(given["config"]).parent):
        found = simulate(given)
    print(json.dumps(found))
