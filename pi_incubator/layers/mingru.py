"""Minimal gated recurrent units (Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201).

Gates and candidates follow from the input alone, so a whole sequence is a linear recurrence.

Letters: T steps, N worlds, D observation width, H units, L layers, S = L H state width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.gates import chrono_bias
from pi_incubator.layers.linear_scan import linear_scan
from pi_incubator.layers.mlp import embedding


class MinGRULayer(nn.Module):
    """One layer, in a highway (Srivastava et al. 2015) around which its input passes.

        z, p, n   = sigmoid(W_z x + b_z), sigmoid(W_p x + b_p), W_n x + b_n
        hidden[t] = (1 - z) * hidden[t - 1] + z * n     Feng et al. 2024, section 3.1
        y         = p * hidden[t] + (1 - p) * x

    Args:
        size: H, of input and output.
        dependency_steps: see `chrono_bias`.
    """

    def __init__(self, size: int, dependency_steps: int) -> None:
        super().__init__()
        self.size = size
        self.gates = nn.Linear(size, 3 * size)  # z, p, n
        for gate in self.gates.weight.detach().split(size):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(self.gates.bias)
        with torch.no_grad():
            self.gates.bias[:size] = -chrono_bias(size, dependency_steps)

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step: `[N, H]` and `[N, H]` -> y and the next hidden state, `[N, H]` each."""
        zp, new = self.gates(x).split([2 * self.size, self.size], -1)
        update, passes = zp.sigmoid().chunk(2, -1)
        hidden = hidden + update * (new - hidden)
        return x + passes * (hidden - x), hidden

    def sequence(self, x: Tensor, hidden: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """`[T, N, H]` -> y and the hidden states, `[T, N, H]` each; see `Encoder.sequence`."""
        # In full precision also under autocast: what is rounded in a recurrence is rounded T times.
        dtype = self.gates.weight.dtype
        zp, new = self.gates(x).to(dtype).split([2 * self.size, self.size], -1)
        update, passes = zp.sigmoid().chunk(2, -1)
        states = linear_scan(1.0 - update, update * new, hidden.to(dtype), starts)
        return x + passes * (states - x), states


class MinGRUEncoder(Encoder):
    """A linear layer with an activation, then layers of minimal gated recurrent units.

    Args:
        width: D, of the observations.
        size: H.
        num_layers: L.
        dependency_steps: see `chrono_bias`.
        activation: after the first layer.
    """

    def __init__(
        self, width: int, size: int, num_layers: int, dependency_steps: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.num_features, self.state_width = size, size * num_layers
        self.embed = embedding(width, size, activation)
        self.layers = nn.ModuleList(MinGRULayer(size, dependency_steps) for _ in range(num_layers))

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, states = self.embed(observation), []
        for layer, hidden in zip(self.layers, state.chunk(len(self.layers), -1), strict=True):
            x, hidden = layer(x, hidden)
            states.append(hidden)
        return x, torch.cat(states, -1)

    def sequence(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        return self._run(observation, state, starts)[0]

    def states(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        return torch.cat(self._run(observation, state, starts)[1], -1)

    def _run(self, observation: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features `[T, N, H]`, and the states `[T, N, H]` of each layer."""
        x, states = self.embed(observation), []
        for layer, hidden in zip(self.layers, state.chunk(len(self.layers), -1), strict=True):
            assert isinstance(layer, MinGRULayer)
            x, hidden = layer.sequence(x, hidden, starts)
            states.append(hidden)
        return x, states
