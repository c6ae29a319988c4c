"""What a policy sees of the observation: with noise, and the last observations in one row.

Letters: N worlds, D observation width, H observations of the history.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs_gpu.draw import Draw
from envs_gpu.random import OBSERVATION_NOISE, Draws

_SEEN_BY_ROBOT = "policy"


class Perception:
    """Noise on the `policy` group, and its last H observations in one row; other groups are not changed.

    Args:
        noise: distribution of one entry's noise, before it is scaled; None is no noise.
        scale: `[D]` what each entry's noise is multiplied with, see `observation.noise_scale`; None is 1.
        history: H, at least 1.
    """

    def __init__(self, noise: Draw | None, scale: Tensor | None, history: int) -> None:
        self._noise, self._scale, self.history = noise, scale, history

    def first(self, groups: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """The first observation of an episode, which fills the history."""
        return self._replace(groups, self._sense(groups, draws).repeat(1, self.history))

    def next(self, groups: dict[str, Tensor], before: Tensor, draws: Draws) -> dict[str, Tensor]:
        """A later observation; `before` `[N, H D]` is what the policy saw last, oldest first."""
        if self._noise is None and self.history == 1:
            return groups
        seen = self._sense(groups, draws)
        if self.history > 1:
            seen = torch.cat((before[:, seen.shape[-1] :], seen), -1)
        return self._replace(groups, seen)

    def _sense(self, groups: dict[str, Tensor], draws: Draws) -> Tensor:
        truth = groups[_SEEN_BY_ROBOT]
        if self._noise is None:
            return truth
        width = 1 if self._noise.shared else truth.shape[-1]
        unit = draws.uniform(OBSERVATION_NOISE, self._noise.num_lanes(width))
        noise = self._noise.numbers(unit).to(truth.dtype)
        return truth + (noise if self._scale is None else noise * self._scale)

    @staticmethod
    def _replace(groups: dict[str, Tensor], seen: Tensor) -> dict[str, Tensor]:
        return {name: seen if name == _SEEN_BY_ROBOT else value for name, value in groups.items()}
