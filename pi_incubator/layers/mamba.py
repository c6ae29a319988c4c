"""Selective state spaces (Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State
Spaces").

Letters: T steps, N worlds, D observation width, H width of the residual stream, I channels of a layer,
K taps of its convolution, M states of a channel, L layers, S = L ((K - 1) I + I M) state width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.selective_scan import selective_scan
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.mlp import embedding

STEP_SIZES = (0.001, 0.1)
"""Range of the initial step sizes, as in the paper's section 3.6: memories of ten to a thousand steps."""

SELECT_GAIN = 4.0
"""Gain of the initial weights that choose how states are written and read."""


class MambaLayer(nn.Module):
    """A block as in the paper's figure 3, with layer normalization before it and a residual connection.

    Args:
        size: H.
        num_channels: I.
        num_states: M.
        num_taps: K.
    """

    def __init__(self, size: int, num_channels: int, num_states: int, num_taps: int) -> None:
        super().__init__()
        self.num_channels, self.num_states, self.num_taps = num_channels, num_states, num_taps
        self.rank = -(-num_channels // 16)
        self.conv_width = (num_taps - 1) * num_channels
        self.state_width = self.conv_width + num_channels * num_states
        self.norm = nn.LayerNorm(size)
        self.enter = nn.Linear(size, 2 * num_channels, bias=False)  # the input and the gate
        bound = num_taps**-0.5
        self.taps = nn.Parameter(torch.empty(num_taps, num_channels).uniform_(-bound, bound))
        self.tap_bias = nn.Parameter(torch.zeros(num_channels))
        self.select = nn.Linear(num_channels, self.rank + 2 * num_states, bias=False)  # step size, B, C
        self.step_size = nn.Linear(self.rank, num_channels)
        self.leave = nn.Linear(num_channels, size, bias=False)
        self._init_linear()
        nn.init.uniform_(self.step_size.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(size) for size in STEP_SIZES)
        sizes = torch.empty(num_channels).uniform_(low, high).exp()
        with torch.no_grad():
            self.step_size.bias.copy_(sizes + (-torch.expm1(-sizes)).log())  # softplus makes `sizes` of it
        rates = torch.arange(1.0, num_states + 1.0).log()
        self.log_rate = nn.Parameter(rates.repeat(num_channels, 1))  # [I, M]
        self.skip = nn.Parameter(torch.ones(num_channels))

    def _init_linear(self) -> None:
        """Orthogonal weights, so large that what was seen once changes the features noticeably.

        With torch's smaller ones a state would change the features by 1e-5 of what the input does: over long
        texts that adds up, but a cue that is seen once would not be learned from.
        """
        for part in self.enter.weight.detach().split(self.num_channels):
            nn.init.orthogonal_(part, 2**0.5)
        nn.init.orthogonal_(self.select.weight, SELECT_GAIN)
        nn.init.orthogonal_(self.leave.weight)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: `[N, H]` and the state `[N, (K - 1) I + I M]` -> output and next state, of like shapes.

        In plain operations, so that it can be exported; `sequence` has the kernel.
        """
        inputs, gate = self.enter(self.norm(x)).chunk(2, -1)
        before, hidden = state.split([self.conv_width, self.num_channels * self.num_states], -1)
        window = torch.cat((before, inputs), -1)  # [N, K I]
        taps = window.unflatten(-1, (self.num_taps, self.num_channels)) * self.taps
        u = F.silu(taps.sum(1) + self.tap_bias)  # [N, I]
        rank, enters, is_read = self._selected(u)
        step = F.softplus(self.step_size(rank)).unsqueeze(-1)  # [N, I, 1]
        hidden = hidden.unflatten(-1, (self.num_channels, self.num_states))
        decay = (step * -self.log_rate.exp()).exp()
        hidden = decay * hidden + (step * u.unsqueeze(-1)) * enters.unsqueeze(1)
        y = (hidden @ is_read.unsqueeze(-1)).squeeze(-1) + self.skip * u
        out = x + self.leave(y * F.silu(gate))
        return out, torch.cat((window[:, self.num_channels :], hidden.flatten(1)), -1)

    def sequence(self, x: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        """Outputs `[N, T, H]` of `[N, T, H]`, the state `[N, ...]` before them, and `starts` `[N, T]`."""
        inputs, gate = self.enter(self.norm(x)).chunk(2, -1)
        before, hidden = state.split([self.conv_width, self.num_channels * self.num_states], -1)
        u = F.silu(self._convolved(inputs, before.unflatten(-1, (-1, self.num_channels)), starts))
        rank, enters, is_read = self._selected(u)
        y, _ = selective_scan(
            u,
            F.linear(rank, self.step_size.weight),
            -self.log_rate.exp(),
            enters,
            is_read,
            self.skip,
            gate,
            self.step_size.bias,
            delta_softplus=True,
            reset=starts,
            initial_state=hidden.unflatten(-1, (self.num_channels, self.num_states)),
        )
        return x + self.leave(y)

    def _selected(self, u: Tensor) -> tuple[Tensor, ...]:
        """What follows from `[..., I]`: the step size at low rank, and how states are written and read."""
        return self.select(u).split([self.rank, self.num_states, self.num_states], -1)

    def _convolved(self, inputs: Tensor, before: Tensor, starts: Tensor) -> Tensor:
        """The convolution `[N, T, I]`, which does not reach over the start of an episode.

        Args:
            inputs: `[N, T, I]`.
            before: `[N, K - 1, I]`, the inputs of the steps before these.
            starts: `[N, T]`.
        """
        num_before, num_steps = before.shape[1], inputs.shape[1]
        padded = torch.cat((before.to(inputs.dtype), inputs), 1)  # [N, K - 1 + T, I]
        episode = F.pad(starts.cumsum(1), (num_before, 0))  # [N, K - 1 + T]
        total = torch.addcmul(self.tap_bias, inputs, self.taps[-1])
        for tap in range(num_before):
            steps = slice(tap, tap + num_steps)
            is_other = episode[:, steps] != episode[:, num_before:]
            reached = padded[:, steps].masked_fill(is_other.unsqueeze(-1), 0.0)
            total = torch.addcmul(total, reached, self.taps[tap])
        return total


class MambaEncoder(Encoder):
    """A linear layer with an activation, then layers of selective state spaces.

    There is no normalization behind them, as the paper's language models have: it would make the features
    three times as large, and what the state adds to them no larger.

    Args:
        width: D, of the observations.
        size: H.
        num_layers: L.
        expansion: I / H.
        num_states: M.
        num_taps: K.
        activation: after the first layer.
    """

    def __init__(
        self,
        width: int,
        size: int,
        num_layers: int,
        expansion: int,
        num_states: int,
        num_taps: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.embed = embedding(width, size, activation)
        layers = [MambaLayer(size, expansion * size, num_states, num_taps) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.num_features = size
        self.state_width = sum(layer.state_width for layer in layers)

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, states = self.embed(observation), []
        for layer, before in zip(self.layers, state.chunk(len(self.layers), -1), strict=True):
            x, after = layer(x, before)
            states.append(after)
        return x, torch.cat(states, -1)

    def sequence(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        x = self.embed(observation.transpose(0, 1).contiguous())  # [N, T, H]
        starts = starts.t().contiguous()
        for layer, before in zip(self.layers, state.chunk(len(self.layers), -1), strict=True):
            assert isinstance(layer, MambaLayer)
            x = layer.sequence(x, before, starts)
        return x.transpose(0, 1)
