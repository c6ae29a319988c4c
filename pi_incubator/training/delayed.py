"""Policy updates that are rarer than those of the critics (Fujimoto et al. 2018, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.training.captured import Step
from pi_incubator.training.step import Phase


class DelayedActor:
    """A step of the critics on each minibatch, and before every n-th one a step of the policy.

    Args:
        actor: the policy, and how it moves; its report is `[M]`.
        critics: the same of the critics.
        every: n.
        num_reports: M.
        make: turns a phase into an optimizer step.
        device: of the training.
    """

    def __init__(
        self,
        actor: Phase,
        critics: Phase,
        every: int,
        num_reports: int,
        make: Callable[[Sequence[Phase]], Step],
        device: torch.device,
    ) -> None:
        self._actor, self._critics, self._every = make([actor]), make([critics]), every
        self._actor_report = torch.zeros(num_reports, device=device)
        self._num_steps = torch.zeros((), dtype=torch.int64)

    def __call__(self, minibatch: TensorDict) -> Tensor:
        """The critics' report, then the newest one of the policy."""
        if self._num_steps % self._every == 0:
            self._actor_report.copy_(self._actor(minibatch))
        self._num_steps += 1
        return torch.cat((self._critics(minibatch), self._actor_report))

    def state_dict(self) -> dict[str, Tensor]:
        return {"num_steps": self._num_steps, "actor_report": self._actor_report}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._num_steps.copy_(state["num_steps"])
        self._actor_report.copy_(state["actor_report"])
