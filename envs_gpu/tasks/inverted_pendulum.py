"""Keep a pole upright on a cart: Gymnasium's InvertedPendulum-v5.

Source: Barto, Sutton and Anderson 1983, "Neuronlike Adaptive Elements That Can Solve Difficult Learning
Control Problems".
"""

from __future__ import annotations

from torch import Tensor

from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import GymnasiumTask
from envs_gpu.tasks.base import Episode, Outcome


@task("inverted_pendulum")
class InvertedPendulum(GymnasiumTask):
    """Observation `policy` `[N, 4]`."""

    parameters = (
        Parameter("alive_reward", 1.0, "1", "reward for a step upright", low=0.0),
        Parameter("healthy_angle_max_rad", 0.2, "rad", "tilted further, the pole has fallen", low=0.0),
    )
    model_name = "inverted_pendulum"
    substeps = 2
    reset_noise_scale = 0.01

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        terms = (
            ObservationTerm("cart_position", 1, lambda state, _: state.qpos[:, :1], "m"),
            ObservationTerm("pole_angle", 1, lambda state, _: state.qpos[:, 1:], "rad"),
            ObservationTerm("cart_velocity", 1, lambda state, _: state.qvel[:, :1], "m/s"),
            ObservationTerm("pole_velocity", 1, lambda state, _: state.qvel[:, 1:], "rad/s"),
        )
        return {"policy": terms}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        # Written so that a NaN angle counts as fallen.
        upright = state.qpos[:, 1].abs() <= episode.parameters["healthy_angle_max_rad"]
        return Outcome({"alive": episode.parameters["alive_reward"] * upright}, ~upright, {})
