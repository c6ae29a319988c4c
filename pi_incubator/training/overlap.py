"""Updates in the background: the next rollout is collected while the last one is learned from."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.policies.actor_critic import ActorCritic
from pi_incubator.saved_state import load_module
from pi_incubator.training.background import make_background

HAS_LEARNED = "has_learned"
"""In a checkpoint: whether there was an update before it."""


class OverlappedUpdates:
    """Updates that return at once and go on in the background.

    `actor` acts with weights that lack the update under way, so a rollout is one update older than the policy
    that learns from it. PPO takes its ratios to the policy that did act. The normalizer is the actor's, and
    the same for a rollout and the update on it.

    The same seed gives the same bits: both sides meet at each `update` and nowhere else. There weights and
    rollout are copied, and in between the two share nothing. `settle` waits and hands nothing over, so saving
    more often changes nothing. The actor is part of a checkpoint, because it lags behind `model`.

    Args:
        learn: rollout -> metrics; optimizes `model`.
        model: what is optimized.
    """

    def __init__(self, learn: Callable[[TensorDict], dict[str, Tensor]], model: ActorCritic) -> None:
        self._learn, self._model = learn, model
        self.actor = copy.deepcopy(model).requires_grad_(False)
        device = next(model.parameters()).device
        self._background = make_background(device)
        self._data: TensorDict | None = None
        self._metrics: dict[str, Tensor] = {}
        self._has_learned = torch.zeros((), dtype=torch.bool)

    @property
    def is_learning(self) -> bool:
        """Whether an update is under way, so that the weights of `model` must not be read."""
        return self._background.runs

    def update(self, data: TensorDict) -> dict[str, Tensor]:
        """Start the update on a copy of `data`; returns the metrics of the one before it."""
        self.settle()
        if self._has_learned:
            self._hand_over()
        first = self._data is None
        self._data = data.clone() if self._data is None else self._data.copy_(data)
        self._background.start(self._learn, self._data)
        self._has_learned.fill_(True)
        if first:  # compilation in the background would hold up both sides
            self._metrics = self._background.wait()
        return self._metrics

    def settle(self) -> None:
        """Wait for the update under way, if any."""
        if self._background.runs:
            self._metrics = self._background.finish()

    def state_dict(self) -> dict[str, Tensor]:
        """The actor, and whether an update has been made that it lacks."""
        return self.actor.state_dict() | {HAS_LEARNED: self._has_learned}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        self._has_learned.copy_(state[HAS_LEARNED])
        load_module(self.actor, {name: value for name, value in state.items() if name != HAS_LEARNED})

    def _hand_over(self) -> None:
        """Let the actor have the newest weights, and the model the actor's newest moments of observations."""
        self.actor.policy.normalizer.commit()
        for ours, theirs in zip(self._model.buffers(), self.actor.buffers(), strict=True):
            ours.copy_(theirs)
        for theirs, weight in zip(self.actor.parameters(), self._model.parameters(), strict=True):
            theirs.copy_(weight.detach())
