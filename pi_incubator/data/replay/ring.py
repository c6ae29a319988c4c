"""The newest steps of every world, in tensors on the device that are allocated once; sampled uniformly.

Letters: L steps of each world, N worlds, K shards, n = N / K worlds of a shard, B samples of a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import EnvSpec
from pi_incubator.data.replay.replay import NEXT, OBS, Replay
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.errors import StateError
from pi_incubator.saved_state import count_of


class Ring(Replay):
    """A ring of L steps of every world.

    A minibatch takes the same number of steps from each shard of worlds, see `data.sharded`.

    Args:
        capacity: most steps that are held, over all worlds; rounded down to whole steps of every world.
        spec: the env's.
        groups: the observation groups that are stored.
        random: samples.
        n_step: most steps that a sampled reward sums; 1 leaves rewards as they are.
        gamma: discount of the reward, per step, in these sums.
        dtype: of the stored observations that are float32 in the env; samples are float32 again.
    """

    def __init__(
        self,
        capacity: int,
        spec: EnvSpec,
        groups: Iterable[str],
        random: ShardedRandom,
        n_step: int = 1,
        gamma: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._random, self._n_step, self._gamma = random, n_step, gamma
        self._length = max(1, capacity // spec.num_envs)  # L
        self._num_worlds = spec.num_envs
        self._width = spec.num_envs // random.num_shards  # n
        self._count = 0  # steps of each world ever added
        self._groups, self._device = tuple(groups), spec.device
        self._tensors: dict[str, Tensor] = {}  # each [L, N, ...]
        self._flat: dict[str, Tensor] = {}  # the same as [L * N, ...]
        self._store("action", spec.action_dim)
        self._store("reward")
        for name in ("terminated", "truncated", "valid"):
            self._store(name, dtype=torch.bool)
        for group in self._groups:
            shape, in_env = spec.obs_shape(group), spec.obs_dtype(group)
            for moment in (OBS, NEXT):
                self._store(moment + group, *shape, dtype=dtype if in_env == torch.float32 else in_env)
        self._of_last = [NEXT + group for group in self._groups] + ["terminated", "truncated"]
        self._of_first = [OBS + group for group in self._groups] + ["action", "valid"]

    def _store(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        """Make room for `name` `[N, *shape]` of each added step."""
        tensor = torch.zeros(self._length, self._num_worlds, *shape, dtype=dtype, device=self._device)
        self._tensors[name], self._flat[name] = tensor, tensor.flatten(0, 1)

    def add(self, steps: Mapping[str, Tensor]) -> None:
        place = self._count % self._length
        for name, tensor in self._tensors.items():
            tensor[place].copy_(steps[name])
        self._count += 1

    def sample(self, size: int) -> TensorDict:
        return self.steps_at(self._uniform(size, self._num_filled))

    def steps_at(
        self,
        index: Tensor,
        reward_at: Callable[[Tensor], Tensor] | None = None,
        others: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> TensorDict:
        """The steps at `index` `[B]`: places in the tensors with their first two dimensions flattened.

        `reward_at` gives the rewards of the steps at places `[B]`, where they are not those that are stored.
        `others` `[B, ...]` become part of the minibatch.
        """
        last, num_steps, reward = self._sums(index, reward_at or self._flat["reward"].__getitem__)
        steps = {name: self._read(name, index) for name in self._of_first}
        steps |= {name: self._read(name, last) for name in self._of_last}
        steps |= {"reward": reward, "num_steps": num_steps} | dict(others)
        return TensorDict(steps, batch_size=[len(index)])

    def _read(self, name: str, index: Tensor) -> Tensor:
        """What is stored under `name` at the places `index`; float32 also where less precision is stored."""
        # Not `tensor[index]`, which on a CPU takes three times as long for rows of a hundred numbers.
        value = self._flat[name].index_select(0, index.flatten())
        value = value if index.ndim == 1 else value.unflatten(0, index.shape)
        return value.float() if value.dtype == torch.bfloat16 else value

    def _sums(self, index: Tensor, reward_at: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Where the n-step return from `index` `[B]` ends, over how many steps, and its sum of rewards.

        It ends with the episode, before a step that broke, and at the newest step.
        """
        flat, newest = self._flat, (self._count - 1) % self._length
        last, reward = index, reward_at(index)
        num_steps, discount = torch.ones_like(index), torch.ones_like(reward)
        goes_on = torch.ones_like(index, dtype=torch.bool)
        for _ in range(self._n_step - 1):
            ended = flat["terminated"][last] | flat["truncated"][last] | ~flat["valid"][last]
            following = self._later(last, 1)
            goes_on &= ~ended & (last // self._num_worlds != newest) & flat["valid"][following]
            discount = discount * self._gamma
            reward = torch.where(goes_on, reward + discount * reward_at(following), reward)
            last, num_steps = torch.where(goes_on, following, last), num_steps + goes_on
        return last, num_steps, reward

    def _later(self, index: Tensor, num_steps: Tensor | int) -> Tensor:
        """The place of the step of the same world `num_steps` after the one at `index`."""
        return (index + num_steps * self._num_worlds) % self.capacity

    def _uniform(self, size: int, num_rows: int) -> Tensor:
        """Places of `size` steps in the first rows, each equally likely, the same number from each shard."""
        num_shards = self._random.num_shards
        return self._places(self._random.integers(num_rows * self._width, size // num_shards))

    def _places(self, of_shards: list[Tensor]) -> Tensor:
        """Places in the tensors `[B]`, of indices `[B / K]` into the steps of each shard alone."""
        if len(of_shards) == 1:
            return of_shards[0]
        width, pieces = self._width, []
        for shard, index in enumerate(of_shards):
            pieces.append(index // width * self._num_worlds + shard * width + index % width)
        return torch.cat(pieces)

    def _of_shards(self, places: Tensor) -> tuple[Tensor, ...]:
        """What `_places` was given."""
        num_shards, width = self._random.num_shards, self._width
        if num_shards == 1:
            return (places,)
        return (places // self._num_worlds * width + places % width).chunk(num_shards)

    @property
    def _num_filled(self) -> int:
        """Rows that hold steps."""
        return min(self._count, self._length)

    @property
    def fewest(self) -> int:
        return self._num_worlds

    @property
    def capacity(self) -> int:
        return self._length * self._num_worlds

    def __len__(self) -> int:
        return self._num_filled * self._num_worlds

    def state_dict(self) -> dict[str, Tensor]:
        """Views of the rows in use, and how many were ever added; the generators are saved by their owner."""
        state = {name: tensor[: self._num_filled] for name, tensor in self._tensors.items()}
        return state | {"count": torch.tensor(self._count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            StateError: it does not hold as many steps as it says, or steps of another shape.
        """
        count = count_of(state["count"])
        filled = min(count, self._length)
        for name, tensor in self._tensors.items():
            if count < 0 or state[name].shape != (filled, *tensor.shape[1:]):
                problem = f"has {name!r} {list(state[name].shape)} of {count} steps"
                raise StateError(f"{problem}, needed is {[filled, *tensor.shape[1:]]}")
        self._count = count
        for name, tensor in self._tensors.items():
            tensor[:filled].copy_(state[name])
