"""Gated recurrent units (Cho et al. 2014), one for the actor and one for the critic, and a head for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.models import NetworkSection
from pi_incubator.networks._actor_critic import observation_groups
from pi_incubator.networks._gru_scan import gru_scan
from pi_incubator.networks._stateful import Memory, StatefulActorCritic
from pi_incubator.networks.mlp import ACTIVATIONS, mlp
from pi_incubator.registry import network


@network("gru")
def make_gru(cfg: NetworkSection, spec: EnvSpec) -> StatefulActorCritic:
    """The first of `cfg.hidden_sizes` are recurrent units, the others layers of the heads behind them."""
    actor_memory, critic_memory = (
        GRUMemory(spec.obs_dims[group], cfg.hidden_sizes[0]) for group in observation_groups(spec)
    )
    activation = ACTIVATIONS[cfg.activation]
    actor = mlp([*cfg.hidden_sizes, spec.action_dim], activation, output_gain=0.01)
    critic = mlp([*cfg.hidden_sizes, 1], activation, output_gain=1.0)
    return StatefulActorCritic(cfg, spec, (actor_memory, critic_memory), actor, critic)


class GRUMemory(Memory):
    """Its state is the hidden state, and so are its features.

    Args:
        width: D, of the observations.
        size: S, recurrent units.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.state_width = size
        self.cell = nn.GRUCell(width, size)
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            for gate in weight.detach().split(size):
                nn.init.orthogonal_(gate)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: `[N, D]` and `[N, S]` -> the next state `[N, S]`, twice."""
        state = self.cell(observation, state)
        return state, state

    def sequence(self, observation: Tensor, state: Tensor, begins: Tensor) -> Tensor:
        cell = self.cell
        inputs = torch.nn.functional.linear(observation, cell.weight_ih, cell.bias_ih)  # [T, N, 3 S]
        return gru_scan(inputs, state, begins, cell.weight_hh, cell.bias_hh)
