"""Runners in the plane x-z: faster is better, big actions cost, and one that falls is done."""

from __future__ import annotations

from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks._gymnasium import GymnasiumTask
from envs_gpu.tasks.base import Episode, Outcome

HEALTHY_REWARD = Parameter("healthy_reward", 1.0, "1", "reward for a step on its feet", low=0.0)


class PlanarRunner(GymnasiumTask):
    """What all runners share; the root has two slides and a hinge, and every other joint is a hinge."""

    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("forward_weight", 1.0, "s/m", "reward for the forward velocity"),
        Parameter("control_cost_weight", 1e-3, "1", "cost of the squared actions", low=0.0),
    )
    unobserved_positions = 1
    """How many of the root's positions are left out, from the first: the reward does not depend on them."""
    max_observed_velocity = float("inf")
    """Observed velocities are clipped to ± this, m/s and rad/s."""

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        self.uniform_positions = tuple(range(self.unobserved_positions))

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        skipped, limit = self.unobserved_positions, self.max_observed_velocity
        hinges = ["rad"] * (self.num_velocities - 2)
        units = ", ".join((*["m"] * (2 - skipped), *hinges))
        rates = ", ".join(f"{unit}/s" for unit in ("m", "m", *hinges))
        count = self.num_velocities
        terms = (
            ObservationTerm("positions", count - skipped, lambda state, _: state.qpos[:, skipped:], units),
            ObservationTerm("velocities", count, lambda state, _: state.qvel, rates, clip=limit),
        )
        return {"policy": terms}

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        return {"x_m": state.qpos[:, 0].clone()}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return self.begin(state, episode)

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        forward_velocity = (state.qpos[:, 0] - episode.memory["x_m"]) / self.control_dt
        parameters = episode.parameters
        reward = {
            "forward": parameters["forward_weight"] * forward_velocity,
            "control": -parameters["control_cost_weight"].to(action.dtype) * action.square().sum(-1),
        }
        healthy = self.healthy(state, parameters)
        if healthy is None:
            terminated = torch.zeros_like(forward_velocity, dtype=torch.bool)
        else:
            reward["healthy"] = parameters["healthy_reward"] * healthy
            terminated = ~healthy
        return Outcome(reward, terminated, {"forward_velocity_m_s": forward_velocity})

    def healthy(self, state: PhysicsState, parameters: dict[str, Tensor]) -> Tensor | None:
        """`[N]` bool: still on its feet; None for a runner that cannot fall.

        A runner that can has `HEALTHY_REWARD` among its parameters.
        """
        return None
