"""The recurrent state-space model of DreamerV3 (Hafner et al. 2023, arXiv 2301.04104, eq. 3).

    features   s[t] = (h[t], z[t])
    posterior  z[t] ~ q(z | h[t], x[t])      what is inferred from an observation
    recurrence h[t + 1] = f(h[t], z[t], a[t])
    prior      z[t] ~ p(z | h[t])            what is expected without an observation

What a policy carries from step to step is h alone: it is computed as soon as the action is known. An episode
begins with h = 0.

Letters: T steps, N sequences, D observation width, A actions, S width of h, C categorical variables of z,
K classes of each, F = S + C K features, E width of an embedded observation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pi_incubator.layers.categorical import mode, sample
from pi_incubator.layers.encoder import Encoder, StatelessEncoder, restarted
from pi_incubator.layers.norm_mlp import NORM_EPS, dense, norm_mlp
from pi_incubator.layers.two_hot import symlog


class SymlogEncoder(StatelessEncoder):
    """Vectors of any size: `symlog`, then fully connected layers.

    Args:
        sizes: D, then the width of each layer.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.num_features = sizes[-1]
        self.layers = norm_mlp(sizes)

    def encode(self, observation: Tensor) -> Tensor:
        features: Tensor = self.layers(symlog(observation))
        return features


class Recurrence(nn.Module):
    """A GRU cell with normalization: f.

    Args:
        num_inputs: of z and action together.
        size: S.
        width: of the layer before the cell.
    """

    def __init__(self, num_inputs: int, size: int, width: int) -> None:
        super().__init__()
        self.inputs = norm_mlp((num_inputs, width))
        self.gates = dense(width + size, 3 * size)
        self.norm = nn.RMSNorm(3 * size, eps=NORM_EPS)

    def forward(self, latent: Tensor, action: Tensor, state: Tensor) -> Tensor:
        """z `[N, C K]`, action in [-1, 1] `[N, A]` and h `[N, S]` -> the next h `[N, S]`."""
        inputs = self.inputs(torch.cat((latent, action), -1))
        reset, candidate, update = self.norm(self.gates(torch.cat((inputs, state), -1))).chunk(3, -1)
        candidate = (reset.sigmoid() * candidate).tanh()
        # The bias of -1 makes the state last at first.
        return state + (update - 1.0).sigmoid() * (candidate - state)


class RSSMEncoder(Encoder):
    """Observations -> features, with h as the state; `advance` takes h across an action.

    `forward` takes the most likely z, which makes it a function of its arguments. Training samples z.

    Args:
        embed: observation -> E.
        num_actions: A.
        size: S.
        latents: C and K.
        width: of hidden layers.
    """

    def __init__(
        self, embed: StatelessEncoder, num_actions: int, size: int, latents: tuple[int, int], width: int
    ) -> None:
        super().__init__()
        num_latents = latents[0] * latents[1]
        self.latents = latents
        self.state_width, self.num_features = size, size + num_latents
        self.embed = embed
        self.posterior = norm_mlp((size + embed.num_features, width, num_latents), output_gain=1.0)
        self.recurrence = Recurrence(num_latents + num_actions, size, width)

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, D]` and h `[N, S]` -> features `[N, F]` and h, which `advance` needs the action for."""
        latent = mode(self.logits(state, self.embed.encode(observation)))
        return torch.cat((state, latent.flatten(-2)), -1), state

    def logits(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Of the posterior `[..., C, K]`, for h `[..., S]` and an embedded observation `[..., E]`."""
        logits: Tensor = self.posterior(torch.cat((state, embedded), -1))
        return logits.unflatten(-1, self.latents)

    def advance(self, features: Tensor, action: Tensor) -> Tensor:
        """The next h `[N, S]`, for features `[N, F]` and the action in [-1, 1] `[N, A]`."""
        state, latent = features.split((self.state_width, self.num_features - self.state_width), -1)
        following: Tensor = self.recurrence(latent, action, state)
        return following

    def observe_step(
        self, embedded: Tensor, action: Tensor, state: Tensor, starts: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of `observe`: features, logits and the following h, `[N, ...]` like all arguments."""
        state = restarted(state, starts)
        logits = self.logits(state, embedded)
        latent = sample(logits, uniform).flatten(-2)
        return torch.cat((state, latent), -1), logits, self.recurrence(latent, action, state)

    def observe(
        self,
        observation: Tensor,
        action: Tensor,
        state: Tensor,
        starts: Tensor,
        uniform: Tensor,
        step: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run through recorded sequences, with samples of z.

        Args:
            observation: `[T, N, D]`.
            action: in [-1, 1] `[T, N, A]`.
            state: h `[N, S]` before the first step.
            starts: `[T, N]` bool, where a step is the first of an episode.
            uniform: `[T, N, C]` random numbers in [0, 1).
            step: `observe_step`, or a compiled form of it.

        Returns:
            Features `[T, N, F]`, logits of their z `[T, N, C, K]`, and h after each step's action
            `[T, N, S]`.
        """
        embedded = self.embed.encode(observation.flatten(0, 1)).unflatten(0, observation.shape[:2])
        step, rows = step or self.observe_step, []
        for t in range(len(action)):
            rows.append(step(embedded[t], action[t], state, starts[t], uniform[t]))
            state = rows[-1][-1]
        features, logits, following = zip(*rows, strict=True)
        return torch.stack(features), torch.stack(logits), torch.stack(following)


class Prior(nn.Module):
    """p: what is expected of z before the observation is seen.

    Args:
        size: S.
        latents: C and K.
        width: of the hidden layer.
    """

    def __init__(self, size: int, latents: tuple[int, int], width: int) -> None:
        super().__init__()
        self.latents = latents
        self.layers = norm_mlp((size, width, latents[0] * latents[1]), output_gain=1.0)

    def forward(self, state: Tensor) -> Tensor:
        """h `[..., S]` -> logits `[..., C, K]`."""
        logits: Tensor = self.layers(state)
        return logits.unflatten(-1, self.latents)

    def features(self, state: Tensor, uniform: Tensor) -> Tensor:
        """h `[..., S]` and random numbers `[..., C]` in [0, 1) -> features `[..., F]` with a sampled z."""
        return torch.cat((state, sample(self(state), uniform).flatten(-2)), -1)
