"""Swing a hanging pole up and keep it there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs_gpu.random import WorldRandom
from envs_gpu.tasks import task
from envs_gpu.tasks._cartpole import Cartpole


@task("cartpole_swingup")
class CartpoleSwingup(Cartpole):
    """The return is below 1000 by what the swing costs."""

    def initial_state(self, random: WorldRandom) -> tuple[Tensor, Tensor]:
        noise = 0.01 * random.normal(0, 2)
        hanging = torch.tensor([0.0, math.pi], dtype=noise.dtype, device=noise.device)
        return hanging + noise, 0.01 * random.normal(1, 2)
