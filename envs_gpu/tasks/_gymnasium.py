"""What the tasks that equal Gymnasium's MuJoCo environments share.

Where Gymnasium reads a derived quantity (a body's position, a force), it reads what the integrator's last
stage left, which belongs to none of the states that the agent sees. Here it belongs to the state returned.
"""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from envs_gpu.robots import gymnasium_model
from envs_gpu.tasks.base import Episode, Task


class GymnasiumTask(Task):
    """A model of Gymnasium's, started near its resting pose."""

    model_name: str
    """The MJCF file's name in Gymnasium, without `.xml`."""
    reset_noise_scale: float
    """Half the width of the uniform noise on positions (m, rad), and the size of that on velocities."""
    normal_velocity_noise = False
    """Velocities at the start are drawn from a normal distribution instead of a uniform one."""
    max_episode_steps = 1000

    def scene(self) -> mujoco.MjSpec:
        return gymnasium_model(self.model_name)

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        self.initial_qpos = torch.tensor(model.qpos0, device=device)
        self.num_velocities = model.nv

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        noise = self.reset_noise_scale
        offset = episode.random.uniform("start_position", len(self.initial_qpos), -noise, noise)
        qpos = self.initial_qpos + offset
        if self.normal_velocity_noise:
            return qpos, noise * episode.random.normal("start_velocity", self.num_velocities)
        return qpos, episode.random.uniform("start_velocity", self.num_velocities, -noise, noise)


def strictly_between(value: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """`low < value < high`, elementwise."""
    return (value > low) & (value < high)
