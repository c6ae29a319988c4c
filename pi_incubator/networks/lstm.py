"""Long short-term memory (Hochreiter and Schmidhuber 1997): policy and critics have one layer each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pi_incubator.config.networks.lstm import LSTMSettings
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.gates import chrono_bias
from pi_incubator.layers.lstm_scan import lstm_scan
from pi_incubator.layers.network import EncoderNetwork
from pi_incubator.registry import network


@network("lstm")
class LSTM(EncoderNetwork[LSTMSettings]):
    """The first of `hidden_sizes` are recurrent units, the others layers of the heads behind them."""

    def encoder(self, group: str) -> Encoder:
        settings = self.settings
        return LSTMEncoder(self.spec.obs_dims[group], settings.hidden_sizes[0], settings.dependency_steps)


class LSTMEncoder(Encoder):
    """Its state is the hidden state, then the cells, S = 2 H; its features are the hidden state.

    Args:
        width: D, of the observations.
        size: H, recurrent units.
        dependency_steps: see `chrono_bias`.
    """

    def __init__(self, width: int, size: int, dependency_steps: int) -> None:
        super().__init__()
        self.num_features, self.state_width = size, 2 * size
        self.cell = nn.LSTMCell(width, size)
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            for gate in weight.detach().split(size):
                nn.init.orthogonal_(gate)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)
        bias = chrono_bias(size, dependency_steps)
        with torch.no_grad():
            self.cell.bias_ih[: 2 * size] = torch.cat((-bias, bias))  # input gate and forget gate

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: `[N, D]` and `[N, S]` -> the hidden state `[N, H]`, and the next state `[N, S]`."""
        hidden, cell = self.cell(observation, state.chunk(2, -1))
        return hidden, torch.cat((hidden, cell), -1)

    def sequence(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        return self._run(observation, state, starts)[0]

    def states(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        return torch.cat(self._run(observation, state, starts), -1)

    def _run(self, observation: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        cell = self.cell
        inputs = nn.functional.linear(observation, cell.weight_ih, cell.bias_ih + cell.bias_hh)  # [T, N, 4 H]
        hidden, before = state.chunk(2, -1)
        return lstm_scan(inputs, hidden, before, starts, cell.weight_hh)
