"""Gated transformers (Parisotto et al. 2020, "Stabilizing Transformers for Reinforcement Learning", GTrXL).

A step sees itself and the W - 1 steps of its episode before it, whose keys and values are the state. How far
back a step lies enters as a learned number for each head and distance, which is added to the attention's
logits: unlike the paper's relative encodings, it does not depend on the query.

Letters: T steps, N worlds, D observation width, H width of the residual stream, h heads, d = H / h, W window,
K = W - 1 + T keys of a sequence, L layers, S = (W - 1) (1 + 2 L H) state width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pi_incubator.layers.encoder import Encoder, restarted
from pi_incubator.layers.mlp import embedding

GATE_BIAS = 2.0
"""Initial bias of gates, the paper's section 3.2: at first a layer passes most of its input on."""


class Gate(nn.Module):
    """A gated recurrent unit in place of a residual connection, the paper's section 3.2.

    Args:
        size: H.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.of_update = nn.Linear(size, 3 * size, bias=False)  # update, reset, new
        self.of_stream = nn.Linear(size, 2 * size)  # update, reset
        self.of_reset = nn.Linear(size, size, bias=False)
        with torch.no_grad():
            self.of_stream.bias[:size] = -GATE_BIAS
            self.of_stream.bias[size:] = 0.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream `[..., H]` and what a layer makes of it `[..., H]` -> the stream behind the layer."""
        gates, new = self.of_update(y).split([2 * self.size, self.size], -1)
        update, reset = (gates + self.of_stream(x)).sigmoid().chunk(2, -1)
        new = (new + self.of_reset(reset * x)).tanh()
        return x + update * (new - x)


class TransformerLayer(nn.Module):
    """Causal attention and two fully connected layers, normalized before and gated behind.

    Args:
        size: H.
        num_heads: h.
        window: W.
        expansion: width of the fully connected layer, as a multiple of H.
    """

    def __init__(self, size: int, num_heads: int, window: int, expansion: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.query_key_value = nn.Linear(size, 3 * size, bias=False)
        self.bias = nn.Parameter(torch.zeros(num_heads, window))  # of the oldest step first
        self.leave = nn.Linear(size, size)
        self.expand = nn.Linear(size, expansion * size)
        self.contract = nn.Linear(expansion * size, size)
        self.gates = nn.ModuleList(Gate(size) for _ in range(2))
        for part in (*self.query_key_value.weight.detach().split(size), self.leave.weight):
            nn.init.orthogonal_(part)

    def forward(self, x: Tensor, cache: Tensor, is_empty: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            x: `[N, H]`.
            cache: `[N, W - 1, 2 H]`, keys and values of the steps before.
            is_empty: `[N, W]` bool, where there is no step.

        Returns:
            `[N, H]`, and the keys and values `[N, W, 2 H]` with those of this step at the end.
        """
        query, key_value = self._projected(x)
        cache = torch.cat((cache, key_value.unsqueeze(1)), 1)
        keys, values = (self._heads(part) for part in cache.chunk(2, -1))  # [N, h, W, d]
        logits = (keys @ query.unflatten(-1, (self.num_heads, -1, 1))).squeeze(-1) + self.bias
        weights = logits.masked_fill(is_empty.unsqueeze(1), -torch.inf).softmax(-1)  # [N, h, W]
        attended = (weights.unsqueeze(2) @ values).flatten(1)
        return self._behind(x, attended), cache

    def sequence(self, x: Tensor, cache: Tensor, is_hidden: Tensor) -> Tensor:
        """Outputs `[N, T, H]` of `[N, T, H]`.

        Args:
            x: `[N, T, H]`.
            cache: `[N, W - 1, 2 H]`, keys and values of the steps before.
            is_hidden: `[N, T, K]` bool, which keys a step does not see.
        """
        query, key_value = self._projected(x)
        cache = torch.cat((cache.to(key_value.dtype), key_value), 1)  # [N, K, 2 H]
        keys, values = (self._heads(part) for part in cache.chunk(2, -1))
        logits = self._heads(query) @ keys.transpose(-1, -2) + self._biases(x.shape[1])  # [N, h, T, K]
        weights = logits.masked_fill(is_hidden.unsqueeze(1), -torch.inf).softmax(-1)
        # NaN of another episode, whose weight is zero, must not reach the features of this one: zero times
        # NaN is NaN. Steps of the same episode get it by the key. (Gradients are NaN all the same, and the
        # update is skipped.)
        attended = (weights.to(values.dtype) @ values.nan_to_num()).transpose(1, 2).flatten(2)
        return self._behind(x, attended)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries `[..., H]`, and keys and values `[..., 2 H]`."""
        size = x.shape[-1]
        query, key_value = self.query_key_value(self.norms[0](x)).split([size, 2 * size], -1)
        return query * (size // self.num_heads) ** -0.5, key_value

    def _heads(self, rows: Tensor) -> Tensor:
        """`[N, T, H]` -> `[N, h, T, d]`."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _behind(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.gates[0](x, self.leave(attended).relu())
        expanded = self.expand(self.norms[1](x)).relu()
        return self.gates[1](x, self.contract(expanded).relu())

    def _biases(self, num_steps: int) -> Tensor:
        """`[h, T, K]`: of each step and key the bias of their distance, zero out of the window."""
        width = self.window + num_steps
        rows = F.pad(self.bias, (0, num_steps))  # [h, W + T]
        # T such rows one behind the other, cut into rows that are shorter by one: each begins one later.
        rows = rows.unsqueeze(1).expand(-1, num_steps, -1).flatten(1)[:, : num_steps * (width - 1)]
        return rows.unflatten(-1, (num_steps, width - 1))


class TransformerEncoder(Encoder):
    """A linear layer with an activation, then gated transformer layers.

    Args:
        width: D, of the observations.
        size: H.
        num_layers: L.
        num_heads: h, which divides H.
        window: W.
        expansion: width of the fully connected layers, as a multiple of H.
        activation: after the first layer.
    """

    def __init__(
        self,
        width: int,
        size: int,
        num_layers: int,
        num_heads: int,
        window: int,
        expansion: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.embed = embedding(width, size, activation)
        self.layers = nn.ModuleList(
            TransformerLayer(size, num_heads, window, expansion) for _ in range(num_layers)
        )
        self.num_features, self.num_before = size, window - 1
        self.state_width = self.num_before * (1 + 2 * num_layers * size)

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(observation)
        filled, caches = self._unpacked(state)
        filled = F.pad(filled, (0, 1), value=1.0)  # this step is there
        after = [filled[:, 1:]]
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, cache, filled == 0)
            after.append(cache[:, 1:].flatten(1))
        return x, torch.cat(after, -1)

    def sequence(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        x = self.embed(observation.transpose(0, 1).contiguous())  # [N, T, H]
        filled, caches = self._unpacked(restarted(state, starts[0]))
        is_hidden = self._hidden(filled, starts.t())
        for layer, cache in zip(self.layers, caches, strict=True):
            assert isinstance(layer, TransformerLayer)
            x = layer.sequence(x, cache, is_hidden)
        return x.transpose(0, 1)

    def _unpacked(self, state: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Which of the steps before are there `[N, W - 1]`, and keys and values of each layer."""
        width = self.num_before * 2 * self.num_features
        filled, *caches = state.split([self.num_before, *(width for _ in self.layers)], -1)
        return filled, tuple(cache.unflatten(-1, (self.num_before, -1)) for cache in caches)

    def _hidden(self, filled: Tensor, starts: Tensor) -> Tensor:
        """`[N, T, K]` bool: keys out of the window or of other episodes, and empty places of the cache."""
        episode = starts.cumsum(1)  # [N, T], from 0
        # Before the first step there are steps of episode 0, or nothing.
        before = torch.where(filled == 0, -1, 0).to(episode.dtype)
        is_other = episode.unsqueeze(-1) != torch.cat((before, episode), 1).unsqueeze(1)
        num_steps, num_keys = is_other.shape[1:]
        reach = torch.ones(num_steps, num_keys, dtype=torch.bool, device=starts.device)
        return is_other | ~reach.triu().tril(self.num_before)
