"""Keep a pole upright that starts almost so."""

from __future__ import annotations

import torch
from torch import Tensor

from envs_gpu.tasks import task
from envs_gpu.tasks._cartpole import Cartpole
from envs_gpu.tasks.base import Episode


@task("cartpole_balance")
class CartpoleBalance(Cartpole):
    """The return is at most 1000: one for every step upright, centred, slow and with little force."""

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        position = episode.random.uniform("start_position", 1, -0.1, 0.1)
        angle = episode.random.uniform("start_angle", 1, -0.034, 0.034)
        velocity = 0.01 * episode.random.normal("start_velocity", 2)
        return torch.cat((position, angle), dim=-1), velocity
