"""The newest steps of every world, in tensors on the device that are allocated once; sampled uniformly.

Letters: L steps of each world, N worlds, K shards, B samples of a minibatch.
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
    """

    def __init__(self, capacity: int, spec: EnvSpec, groups: Iterable[str], random: ShardedRandom) -> None:
        self._random = random
        self._length = max(1, capacity // spec.num_envs)  # L
        self._num_worlds = spec.num_envs
        self._count = 0  # steps of each world ever added

        def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(self._length, spec.num_envs, *shape, dtype=dtype, device=spec.device)

        self._tensors = {"action": rows(spec.action_dim), "reward": rows()}
        for name in ("terminated", "truncated", "valid"):
            self._tensors[name] = rows(dtype=torch.bool)
        for group in groups:
            shape, dtype = spec.obs_shape(group), spec.obs_dtype(group)
            self._tensors[OBS + group] = rows(*shape, dtype=dtype)
            self._tensors[NEXT + group] = rows(*shape, dtype=dtype)
        self._flat = {name: tensor.flatten(0, 1) for name, tensor in self._tensors.items()}

    def add(self, steps: Mapping[str, Tensor]) -> None:
        place = self._count % self._length
        for name, tensor in self._tensors.items():
            tensor[place].copy_(steps[name])
        self._count += 1

    def sample(self, size: int) -> TensorDict:
        num_shards = self._random.num_shards
        width = self._num_worlds // num_shards  # worlds of a shard
        filled = min(self._count, self._length)
        pieces = []
        for shard, index in enumerate(self._random.integers(filled * width, size // num_shards)):
            pieces.append(index // width * self._num_worlds + shard * width + index % width)
        index = pieces[0] if num_shards == 1 else torch.cat(pieces)
        return TensorDict({name: flat[index] for name, flat in self._flat.items()}, batch_size=[len(index)])

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
