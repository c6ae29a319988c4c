"""The newest steps of every world, in tensors on the device that are allocated once; sampled uniformly.

Letters: L steps of each world, N worlds, K shards, n = N / K worlds of a shard, B samples of a minibatch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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

        def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(self._length, spec.num_envs, *shape, dtype=dtype, device=spec.device)

        self._tensors = {"action": rows(spec.action_dim), "reward": rows()}
        for name in ("terminated", "truncated", "valid"):
            self._tensors[name] = rows(dtype=torch.bool)
        for group in groups:
            shape, in_env = spec.obs_shape(group), spec.obs_dtype(group)
            stored = dtype if in_env == torch.float32 else in_env
            self._tensors[OBS + group] = rows(*shape, dtype=stored)
            self._tensors[NEXT + group] = rows(*shape, dtype=stored)
        self._flat = {name: tensor.flatten(0, 1) for name, tensor in self._tensors.items()}
        self._of_last = [name for name in self._flat if name.startswith(NEXT)] + ["terminated", "truncated"]
        self._of_first = [name for name in self._flat if name not in (*self._of_last, "reward")]

    def add(self, steps: Mapping[str, Tensor]) -> None:
        place = self._count % self._length
        for name, tensor in self._tensors.items():
            tensor[place].copy_(steps[name])
        self._count += 1

    def sample(self, size: int) -> TensorDict:
        return self.steps_at(self._uniform(size))

    def steps_at(self, index: Tensor) -> TensorDict:
        """The steps at `index` `[B]`: places in the tensors with their first two dimensions flattened."""
        last, num_steps, reward = self._sums(index)
        # Not `tensor[index]`, which on a CPU takes three times as long for rows of a hundred numbers.
        steps = {name: self._flat[name].index_select(0, index) for name in self._of_first}
        steps |= {name: self._flat[name].index_select(0, last) for name in self._of_last}
        for name, value in steps.items():
            if value.dtype == torch.bfloat16:
                steps[name] = value.float()
        return TensorDict(steps | {"reward": reward, "num_steps": num_steps}, batch_size=[len(index)])

    def _sums(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the n-step return from `index` `[B]` ends, over how many steps, and its sum of rewards.

        It ends with the episode, before a step that broke, and at the newest step.
        """
        flat, newest = self._flat, (self._count - 1) % self._length
        last, reward = index, flat["reward"][index]
        num_steps, discount = torch.ones_like(index), torch.ones_like(reward)
        goes_on = torch.ones_like(index, dtype=torch.bool)
        for _ in range(self._n_step - 1):
            ended = flat["terminated"][last] | flat["truncated"][last] | ~flat["valid"][last]
            following = (last + self._num_worlds) % len(flat["reward"])
            goes_on &= ~ended & (last // self._num_worlds != newest) & flat["valid"][following]
            discount = discount * self._gamma
            reward = torch.where(goes_on, reward + discount * flat["reward"][following], reward)
            last, num_steps = torch.where(goes_on, following, last), num_steps + goes_on
        return last, num_steps, reward

    def _uniform(self, size: int) -> Tensor:
        """Places of `size` steps, each equally likely, the same number from each shard of worlds."""
        num_shards, filled = self._random.num_shards, min(self._count, self._length)
        return self._places(self._random.integers(filled * self._width, size // num_shards))

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
    def capacity(self) -> int:
        return self._length * self._num_worlds

    def __len__(self) -> int:
        return min(self._count, self._length) * self._num_worlds

    def state_dict(self) -> dict[str, Tensor]:
        """Views of the rows in use, and how many were ever added; the generators are saved by their owner."""
        filled = min(self._count, self._length)
        state = {name: tensor[:filled] for name, tensor in self._tensors.items()}
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
