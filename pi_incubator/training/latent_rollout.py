"""Rollouts in the latent space of a world model, and their returns (Hafner et al. 2023, arXiv 2301.04104).

Letters: H imagined steps, B rollouts, A actions, C categorical variables, S width of h, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pi_incubator.layers.rssm import Prior
from pi_incubator.policies.latent import LatentPolicy

PERCENTILES = (0.05, 0.95)
"""Whose distance is the range of returns."""
RATE = 0.01
"""Of the moving averages of both percentiles."""


class Imagined(NamedTuple):
    """Rollouts of the policy in the model."""

    features: Tensor
    """`[H + 1, B, F]`, the first of which were given."""
    action: Tensor
    """`[H, B, A]` in halves of the range, as sampled; the model sees them clipped to [-1, 1]."""


LatentStep = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Features `[B, F]`, noise `[B, A]` and random numbers `[B, C]` -> action `[B, A]` and the next features."""


def make_latent_step(policy: LatentPolicy, prior: Prior) -> LatentStep:
    """The policy acts once in the model.

    Args:
        policy: with the model's recurrence in its encoder.
        prior: of the model.
    """

    def step(features: Tensor, noise: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = policy.unit_moments(features)
        action = mean + std * noise
        state = policy.encoder.advance(features, action.clamp(-1.0, 1.0))
        return action, prior.features(state, uniform)

    return step


@torch.no_grad()
def imagine(step: LatentStep, features: Tensor, noise: Tensor, uniform: Tensor) -> Imagined:
    """Let the policy act in the model.

    Args:
        step: of `make_latent_step`, or a compiled form of it.
        features: `[B, F]` to begin with.
        noise: `[H, B, A]` standard normal.
        uniform: `[H, B, C]` random numbers in [0, 1).
    """
    rows, actions = [features], []
    for t in range(len(noise)):
        action, following = step(rows[-1], noise[t], uniform[t])
        rows.append(following)
        actions.append(action)
    return Imagined(torch.stack(rows), torch.stack(actions))


class ReturnScale:
    """Advantages are divided by the range of returns between two percentiles, but at least by 1 (eq. 12).

    With it, one weight of the entropy fits rewards of any size. The limit of 1 keeps small returns, which may
    be noise, from being scaled up.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self.limits = torch.zeros(2, device=device)
        """Moving averages of the 5 % and the 95 % percentile."""

    def scale(self) -> Tensor:
        """0-dim."""
        return (self.limits[1] - self.limits[0]).clamp_min(1.0)

    def follow(self, limits: Tensor, sound: Tensor) -> None:
        """Move towards the percentiles `[2]` of an update, unless `sound` (0-dim bool) is false."""
        moved = torch.lerp(self.limits, limits, RATE)
        self.limits.copy_(torch.where(sound, moved, self.limits))

    def state_dict(self) -> dict[str, Tensor]:
        return {"limits": self.limits}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.limits.copy_(state["limits"])


def percentiles(returns: Tensor, num_shards: int) -> Tensor:
    """The 5 % and the 95 % percentile `[2]` of returns `[H, B]`.

    Each is the mean over the shards, which hold successive parts of B. So two ranks with one shard each have
    the same mean as one rank with both shards.
    """
    of_shards = returns.unflatten(1, (num_shards, -1)).transpose(0, 1).flatten(1)  # [K, H B / K]
    ordered = of_shards.sort(-1).values
    limits = []
    for share in PERCENTILES:
        place = share * (ordered.shape[-1] - 1)
        low = int(place)
        high = min(low + 1, ordered.shape[-1] - 1)
        limits.append(torch.lerp(ordered[:, low], ordered[:, high], place - low).mean())
    return torch.stack(limits)
