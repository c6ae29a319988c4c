"""Windows of steps for networks with a state: stored states and burn-in (R2D2, Kapturowski et al. 2019).

A sample has batch `[n]`: windows of successive steps of one world, in which episodes may end anywhere. It
begins with U steps of burn-in. The next T are learned from, and n_step - 1 more belong to their returns.

    obs.GROUP    [n, W, D]  W = U + T + n_step - 1
    starts       [n, W]     bool, where a step is the first of an episode after the window's first step
    state        [n, S]     of the policy before the window's first step, as it was collected or renewed
    index        [n, T]     int64, of the steps that are learned from; for `renew_states`
    next.GROUP   [n, T, D]  and all other names of the contract: of the T steps that are learned from

Letters: L steps of each world, N worlds, K shards, n windows, A actions, D observation width, S state width.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.data.replay.replay import OBS
from pi_incubator.data.replay.ring import Ring

STATE, STARTS, INDEX = "state", "starts", "index"


class Windows(Ring):
    """A ring from which windows are sampled, each place of a window in the ring equally likely.

    No window reaches over the place where the newest step lies before the oldest.

    Args:
        *arguments, **options: as of `Ring`.
        length: T.
        burn_in: U.
        state_width: S.
    """

    def __init__(self, *arguments: Any, length: int, burn_in: int, state_width: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._num_learned, self._learned = length, slice(burn_in, burn_in + length)
        self._window = torch.arange(burn_in + length + self._n_step - 1, device=self._device)  # [W]
        self._store(STATE, state_width)

    @property
    def fewest(self) -> int:
        return len(self._window) * self._num_worlds

    def sample(self, size: int) -> TensorDict:
        """Windows with `size` steps that are learned from, a multiple of T."""
        num_rows = self._num_filled - len(self._window) + 1  # in which a window may begin, from the oldest on
        oldest = self._count - self._num_filled
        return self.windows_at(self._later(self._uniform(size // self._num_learned, num_rows), oldest))

    def windows_at(self, first: Tensor) -> TensorDict:
        """The windows that begin at `first` `[n]`: places in the tensors, flattened."""
        index = self._later(first.unsqueeze(-1), self._window)  # [n, W]
        learned = index[:, self._learned]
        steps = self.steps_at(learned.flatten()).unflatten(0, learned.shape)  # [n, T]
        windows = {name: value for name, value in steps.items() if not name.startswith(OBS)}
        windows |= {OBS + group: self._read(OBS + group, index) for group in self._groups}
        before = index[:, :-1]
        ended = self._flat["terminated"][before] | self._flat["truncated"][before]
        windows[STARTS] = torch.cat((ended.new_zeros(len(first), 1), ended), 1)
        windows[STATE], windows[INDEX] = self._flat[STATE][first], learned
        return TensorDict(windows, batch_size=[len(first)])

    def renew_states(self, index: Tensor, states: Tensor) -> None:
        """Store newer states `[n, T, S]` of the policy before the steps at `index` `[n, T]` of a sample.

        A step that is in several windows gets its state in the last of them.
        """
        stored = self._flat[STATE]
        ordered, source = index.flatten().sort(stable=True)
        # Rows that are written twice get the same numbers twice: on CUDA any of the writes may come last.
        last = torch.searchsorted(ordered, ordered, right=True) - 1
        stored.index_copy_(0, ordered, states.flatten(0, 1)[source[last]].to(stored.dtype))
