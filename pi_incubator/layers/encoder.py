"""Encoders: observations become features, with a state that is carried from step to step.

A state is one float32 row `[S]` a world, zeros at the start of an episode. S is 0 for an encoder that needs
nothing but the observation, so no caller has to ask which kind it has. What steps the worlds keeps the rows,
and zeroes those of worlds that start anew (`restarted`).

Letters: T steps, N worlds, D observation width, F features, S state width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from envs_gpu.pixels import GROUP as PIXELS


class Encoder(nn.Module, ABC):
    """Normalized observations, as `observation_of` gives them -> features."""

    num_features: int
    """F."""
    state_width: int = 0
    """S."""

    @abstractmethod
    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: `[N, D]` and `[N, S]` -> features `[N, F]` and the next state `[N, S]`."""

    def sequence(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        """Features `[T, N, F]` of a sequence, the same as step by step.

        Args:
            observation: `[T, N, D]`.
            state: `[N, S]` before the first step.
            starts: `[T, N]` bool, where a step is the first of an episode, and so begins with zeros.
        """
        features = []
        for t in range(len(observation)):
            feature, state = self(observation[t], restarted(state, starts[t]))
            features.append(feature)
        return torch.stack(features)

    def states(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        """The state after each step of a sequence `[T, N, S]`; arguments as of `sequence`."""
        states = []
        for t in range(len(observation)):
            _, state = self(observation[t], restarted(state, starts[t]))
            states.append(state)
        return torch.stack(states)


class StatelessEncoder(Encoder):
    """An encoder that needs nothing but the observation."""

    @abstractmethod
    def encode(self, observation: Tensor) -> Tensor:
        """`[B, D]` -> features `[B, F]`."""

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(observation), state

    def sequence(self, observation: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        return self.encode(observation.flatten(0, 1)).unflatten(0, observation.shape[:2])


class Identity(StatelessEncoder):
    """The observation is its own features.

    Args:
        width: D, and so F.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def encode(self, observation: Tensor) -> Tensor:
        return observation


def observation_of(obs: Mapping[str, Tensor], groups: Sequence[str]) -> Tensor:
    """What an encoder of `groups` reads, of any batch: one group as it is, several side by side `[..., D]`.

    Pictures among several groups are flattened, and have the dtype of the vectors; D counts all of it.

    Args:
        obs: group -> `[..., D]`, or `[..., C, H, W]` for pixels.
        groups: in this order.
    """
    if len(groups) == 1:
        return obs[groups[0]]
    dtype = next(obs[group].dtype for group in groups if group != PIXELS)
    rows = [obs[group].flatten(-3).to(dtype) if group == PIXELS else obs[group] for group in groups]
    return torch.cat(rows, -1)


def restarted(state: Tensor, starts: Tensor) -> Tensor:
    """`state` `[N, S]`, zeros where `starts` `[N]` is true: an episode starts there."""
    # Not by multiplication: NaN left behind by a diverged policy must end with its episode.
    return state.masked_fill(starts.unsqueeze(-1), 0.0)


def restart_masks(starts: Tensor) -> list[Tensor | None]:
    """For each step of `starts` `[T, N]` the mask `[N, 1]` of the worlds that start an episode there.

    None where no world does, if that is known: looking is free on the CPU; on a GPU it would stall the
    stream.
    """
    masks = starts.unsqueeze(-1).unbind()
    if starts.device.type != "cpu":
        return list(masks)
    return [mask if some else None for mask, some in zip(masks, starts.any(1).tolist(), strict=True)]
