"""What encoders make of a minibatch: of single steps, or of windows of them for networks with a state.

Letters: B samples, n windows, W steps of a window, T of them learned from (so B = n T), D observation width,
F features, S state width.
"""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.data.replay.replay import NEXT, OBS
from pi_incubator.data.replay.sequences import STARTS, STATE
from pi_incubator.layers.encoder import Encoder, observation_of
from pi_incubator.layers.normalizer import GroupNormalizer

_BESIDE = ("action", "reward", "terminated", "truncated", "valid", "num_steps", "noise")


class Features:
    """Features before and after the steps of a minibatch, as a replay buffer gives it.

    In windows, states are carried from step to step and are zeros where an episode starts. The burn-in has no
    gradient. Samples are the steps that are learned from, one window after the other.

    Args:
        encoder: of any network.
        groups: the observation groups that it reads.
        normalizer: of raw observations.
        burn_in: steps at the beginning of a window that are not learned from.
        acts: whether this encoder acted. Then its state before a window is the stored one. Any other begins
            with zeros: it was not run when the steps were collected, so there is no state of it to store.
    """

    def __init__(
        self,
        encoder: Encoder,
        groups: tuple[str, ...],
        normalizer: GroupNormalizer,
        burn_in: int,
        acts: bool = False,
    ) -> None:
        self.encoder, self._groups, self._normalizer = encoder, groups, normalizer
        self._burn_in, self._acts = burn_in, acts

    def as_target(self) -> Features:
        """The same with a copy of the encoder, which gets no gradients."""
        encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        return Features(encoder, self._groups, self._normalizer, self._burn_in, self._acts)

    def now(self, minibatch: TensorDict) -> Tensor:
        """Features `[B, F]` of the observations before the steps."""
        observation = self._observation(minibatch, OBS)
        if STARTS not in minibatch.keys():  # noqa: SIM118 - of a TensorDict
            return self._of_single(observation)
        stop = self._burn_in + minibatch["reward"].shape[1]
        features = self.encoder.sequence(*self._after_burn_in(minibatch, observation[:, :stop]))
        return features.transpose(0, 1).flatten(0, 1)

    def following(self, minibatch: TensorDict) -> Tensor:
        """Features `[B, F]` of the observations after the steps, of an n-step return after its last one."""
        following = self._observation(minibatch, NEXT)  # [B, D] or [n, T, D]
        if STARTS not in minibatch.keys():  # noqa: SIM118 - of a TensorDict
            return self._of_single(following)
        observation = self._observation(minibatch, OBS)
        states = self.encoder.states(*self._after_burn_in(minibatch, observation)).transpose(0, 1)
        num_steps = minibatch["num_steps"]  # [n, T]
        last = torch.arange(num_steps.shape[1], device=num_steps.device) + num_steps - 1
        states = states.gather(1, last.unsqueeze(-1).expand(-1, -1, states.shape[-1]))  # [n, T, S]
        return self.encoder(following.flatten(0, 1), states.flatten(0, 1))[0]

    def _observation(self, minibatch: TensorDict, moment: str) -> Tensor:
        normalizer = self._normalizer
        normalized = {group: normalizer[group](minibatch[moment + group]) for group in self._groups}
        return observation_of(normalized, self._groups)

    def _of_single(self, observation: Tensor) -> Tensor:
        return self.encoder(observation, observation.new_zeros(0))[0]

    def _after_burn_in(self, minibatch: TensorDict, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `Encoder.sequence` takes, of the steps of `observation` `[n, W, D]` after the burn-in."""
        observation = observation.transpose(0, 1)  # [W, n, D]
        starts = minibatch[STARTS].transpose(0, 1)[: len(observation)]
        if self._acts:
            state = minibatch[STATE].to(observation.dtype)
        else:
            state = observation.new_zeros(observation.shape[1], self.encoder.state_width)
        first = self._burn_in
        if first:
            with torch.no_grad():
                state = self.encoder.states(observation[:first], state, starts[:first])[-1]
        return observation[first:], state, starts[first:]


def samples_of(minibatch: TensorDict) -> TensorDict:
    """What a minibatch holds beside observations and states, of batch `[B]`."""
    if STARTS not in minibatch.keys():  # noqa: SIM118 - of a TensorDict
        return minibatch
    beside = {name: minibatch[name].flatten(0, 1) for name in _BESIDE}
    return TensorDict(beside, batch_size=[minibatch["reward"].numel()])
