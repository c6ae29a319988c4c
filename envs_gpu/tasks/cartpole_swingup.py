"""Swing a hanging pole up and keep it there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs_gpu.tasks import task
from envs_gpu.tasks._cartpole import Cartpole
from envs_gpu.tasks.base import Episode


@task("cartpole_swingup")
class CartpoleSwingup(Cartpole):
    """The return is below 1000 by what the swing costs."""

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        position, angle = (0.01 * episode.random.normal("start_position", 2)).split(1, dim=-1)
        velocity = 0.01 * episode.random.normal("start_velocity", 2)
        return torch.cat((position, math.pi + angle), dim=-1), velocity
