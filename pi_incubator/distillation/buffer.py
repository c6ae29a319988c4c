"""The newest labelled steps: a ring, for single steps or for sequences.

A row is one observation and its labels. For a student with a state a row is a sequence of T of them, with the
student's state before the first (Kapturowski et al. 2019: it ages with the row).

Letters: N worlds, B rows of a minibatch, R rows that are held.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pi_incubator.errors import StateError
from pi_incubator.saved_state import count_of

OBSERVATION = "observation."
"""What the names of raw observation groups begin with; the other names are those of `teacher.LABELS`."""
FIRST_STATE, STARTS = "first_state", "starts"
"""Only of sequences: the student's state before the first step, and where an episode starts."""
COUNT = "count"
"""Only of a saved buffer: how many rows were ever added."""


class LabelBuffer:
    """The newest `capacity` rows, by name; memory is taken with the first ones.

    Args:
        capacity: most rows that are held.
        device: where.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.tensors: dict[str, Tensor] = {}
        self._count = 0  # ever added

    def __len__(self) -> int:
        return min(self._count, self.capacity)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Copy N rows, each tensor `[N, ...]`, over the oldest ones; the names are always the same.

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

    def sample(self, number: int) -> dict[str, Tensor]:
        """`number` rows `[B, ...]`, each equally likely, by torch's default generator."""
        index = torch.randint(len(self), (number,), device=self.device)
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def held(self) -> dict[str, Tensor]:
        """All rows that are held, `[R, ...]`: views."""
        return {name: tensor[: len(self)] for name, tensor in self.tensors.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Views of the rows that are held, and how many were ever added."""
        return self.held() | {COUNT: torch.tensor(self._count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            StateError: it does not hold as many rows as it says.
        """
        rows = {name: tensor for name, tensor in state.items() if name != COUNT}
        count = count_of(state[COUNT])
        for name, tensor in rows.items():
            if count < 0 or tensor.shape[:1] != (min(count, self.capacity),):
                raise StateError(f"has {name!r} {list(tensor.shape)} of {count} rows")
        self.tensors, self._count = {}, 0
        if rows:
            self.add(rows)
        self._count = count
