"""What has been observed and how it was labelled: a ring of the newest samples.

A sample is one observation and its labels; for a student with a memory it is a sequence of T of them, with
the state that the student had before the first (Kapturowski et al. 2019: it ages with the sample).

Letters: N worlds, B samples of a minibatch, S samples that are held.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pi_incubator.config import ExperimentConfig
from pi_incubator.networks._actor_critic import ActorCritic

OBSERVATION = "observation."
"""What the names of raw observation groups begin with; the others are those of `Labels`."""
FIRST_STATE, BEGINS = "first_state", "begins"
"""Only of sequences: the student's state before the first step, and whether a step begins an episode."""


class Samples:
    """The newest `capacity` samples, by name; memory is taken with the first ones.

    Args:
        capacity: most samples that are held.
        device: where.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.tensors: dict[str, Tensor] = {}
        self._count = 0  # ever added

    def __len__(self) -> int:
        return min(self._count, self.capacity)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Copy N samples, each tensor `[N, ...]`, over the oldest ones; the names are always the same.

        Of more than `capacity` the last ones are kept.
        """
        number = min(len(next(iter(rows.values()))), self.capacity)
        if not self.tensors:
            shapes = {name: (self.capacity, *rows[name].shape[1:]) for name in rows}
            self.tensors = {
                name: torch.zeros(shape, dtype=rows[name].dtype, device=self.device)
                for name, shape in shapes.items()
            }
        place = (self._count + torch.arange(number, device=self.device)) % self.capacity
        for name, tensor in self.tensors.items():
            tensor[place] = rows[name][-number:]
        self._count += number

    def draw(self, number: int) -> dict[str, Tensor]:
        """`number` samples `[B, ...]`, each as likely, by torch's default generator."""
        index = torch.randint(len(self), (number,), device=self.device)
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def held(self) -> dict[str, Tensor]:
        """All that are held, `[S, ...]`: views."""
        return {name: tensor[: len(self)] for name, tensor in self.tensors.items()}


def num_rows(cfg: ExperimentConfig, student: ActorCritic, steps: int) -> int:
    """How many samples for `student` hold `steps` steps, at least one."""
    return max(1, steps // cfg.algorithm.horizon) if student.state_width else steps
