"""Gated recurrent units (Cho et al. 2014): policy and critics have one each, and a head behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pi_incubator.config.networks.gru import GRUSettings
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.gates import chrono_bias
from pi_incubator.layers.gru_scan import gru_scan
from pi_incubator.layers.network import EncoderNetwork
from pi_incubator.registry import network


@network("gru")
class GRU(EncoderNetwork[GRUSettings]):
    """The first of `hidden_sizes` are recurrent units, the others layers of the heads behind them."""

    def encoder(self, group: str) -> Encoder:
        settings = self.settings
        return GRUEncoder(self.spec.obs_dims[group], settings.hidden_sizes[0], settings.dependency_steps)


class GRUEncoder(Encoder):
    """Its state is the hidden state, and so are its features.

    Args:
        width: D, of the observations.
        size: S, recurrent units.
        dependency_steps: see `chrono_bias`; None leaves update gates half open.
    """

    def __init__(self, width: int, size: int, dependency_steps: int | None = None) -> None:
        super().__init__()
        self.state_width = self.num_features = size
        self.cell = nn.GRUCell(width, size)
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            for gate in weight.detach().split(size):
                nn.init.orthogonal_(gate)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)
        if dependency_steps is not None:
            with torch.no_grad():
                self.cell.bias_ih[size : 2 * size] = chrono_bias(size, dependency_steps)

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: `[N, D]` and `[N, S]` -> the next state `[N, S]`, twice."""
        state = self.cell(observation, state)
        return state, state

    def sequence(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        cell = self.cell
        inputs = torch.nn.functional.linear(observation, cell.weight_ih, cell.bias_ih)  # [T, N, 3 S]
        return gru_scan(inputs, state, starts, cell.weight_hh, cell.bias_hh)

    def states(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        return self.sequence(observation, state, starts)
