"""The network behind a policy: buffers that never move, and states that can be kept or let go.

Letters: D observation width, U targets, S width of all states together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .contract import Contract

Array = NDArray[np.float32]
Allocate = Callable[[int], Array]

OBSERVATION, TARGET = "observation", "target"
NUM_WARM_UP_RUNS = 20
ALIGNMENT = 16  # float32 values, 64 bytes: a cache line, and the widest vector


class FiniteCheck:
    """Whether `size` values hold neither NaN nor infinity, in half a microsecond."""

    def __init__(self, size: int) -> None:
        self._is_finite = np.empty(size, bool)
        self._all = b"\1" * size

    def __call__(self, values: Array) -> bool:
        np.isfinite(values, out=self._is_finite)
        return self._is_finite.tobytes() == self._all  # a tenth of the time of all()


class Network(ABC):
    """One batch of one. Each side of `states` is read while the other is written.

    Args:
        contract: gives the widths.
        allocate: makes a float32 array of so many zeros, where the device can reach it.
    """

    provider: str

    def __init__(self, contract: Contract, allocate: Allocate) -> None:
        self.observation = allocate(contract.observation_width)  # [D]
        self.target = allocate(contract.num_targets)  # [U]
        spans, size = {}, 0
        for state in contract.states:
            spans[state.name] = slice(size, size + state.width)
            size += -(-state.width // ALIGNMENT) * ALIGNMENT
        self._sides = (allocate(size), allocate(size))  # 2 of [S]
        self._states = tuple({name: side[span] for name, span in spans.items()} for side in self._sides)
        self._finite = FiniteCheck(size)
        self._side = 0

    @abstractmethod
    def run(self) -> None:
        """From `observation` and the states compute `target` and the next states."""

    def commit(self) -> None:
        """Let the next states be the states."""
        self._side ^= 1

    def reset(self) -> None:
        """Set every state to zeros."""
        self._sides[self._side].fill(0.0)

    def next_states_are_finite(self) -> bool:
        """Whether the states that `run` wrote hold neither NaN nor infinity."""
        return self._finite(self._sides[self._side ^ 1])

    def states(self) -> dict[str, Array]:
        """Views `[S]` of the states by name; valid until the next `commit`."""
        return dict(self._states[self._side])

    def _warm_up(self) -> None:
        """Run a few times, so that the first real step is not the slow one."""
        for _ in range(NUM_WARM_UP_RUNS):
            self.run()
        self._sides[0].fill(0.0)
        self._sides[1].fill(0.0)


def tensors(contract: Contract) -> tuple[dict[str, int], dict[str, int]]:
    """Width by name of the inputs and of the outputs that the network must have, in order."""
    inputs = {OBSERVATION: contract.observation_width}
    outputs = {TARGET: contract.num_targets}
    for state in contract.states:
        inputs[f"{state.name}_in"] = state.width
        outputs[f"{state.name}_out"] = state.width
    return inputs, outputs
