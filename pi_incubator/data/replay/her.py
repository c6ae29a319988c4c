"""Hindsight experience replay (Andrychowicz et al. 2017, arXiv 1707.01495), with the strategy `future`.

A part of the samples is relabelled: instead of the task's goal they have one that was achieved at a later
step of the same episode, and the reward that the task gives for it.

Letters: L steps of each world, N worlds, B samples of a minibatch, G numbers of a goal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.goals import ObservedGoals
from pi_incubator.data.replay.replay import NEXT, OBS
from pi_incubator.data.replay.ring import Ring

AGE, PARAMETER = "age", "parameter."
BROKEN = -(2**30)
"""Age of a step that broke: it never continues an episode, and nothing continues it."""


class Her(Ring):
    """A ring that relabels samples.

    A task may change its goal within an episode, by chance and whatever the goal was. So the step that is
    relabelled has the new goal before it, and after it too unless the task changed its goal there: then the
    task's goal is the next one, as it would have been. In an n-step return, the new goal counts in the
    rewards of all steps until the task changes its goal. The step whose goal is taken may be after that.

    Args:
        *arguments, **options: as of `Ring`.
        goals: of the env, in the stored groups.
        parameters: the env's task parameters, name -> `[N]`; those that the goals' reward reads are stored
            with each step.
        max_episode_steps: most steps of an episode.
        share: of the samples that are relabelled, the same in each shard.
    """

    def __init__(
        self,
        *arguments: Any,
        goals: ObservedGoals,
        parameters: Mapping[str, Tensor],
        max_episode_steps: int,
        share: float = 0.8,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._goals, self._share, self._max_episode_steps = goals, share, max_episode_steps
        self._parameters = {name: parameters[name] for name in goals.parameters}
        for name in self._parameters:
            self._store(PARAMETER + name)
        self._store(AGE, dtype=torch.int32)  # steps of the episode before this one
        self._next_age = self._flat[AGE].new_zeros(self._num_worlds)

    def add(self, steps: Mapping[str, Tensor]) -> None:
        parameters = {PARAMETER + name: value for name, value in self._parameters.items()}
        age = torch.where(steps["valid"], self._next_age, BROKEN)
        super().add({**steps, **parameters, AGE: age})
        self._next_age = self._age_after(self._next_age, steps)

    def sample(self, size: int) -> TensorDict:
        index = self._uniform(size, self._num_filled)
        achieved = self._goals.achieved(self._observation(NEXT, self._future(index)))
        of_shard = size // self._random.num_shards
        is_relabelled = torch.arange(size, device=self._device) % of_shard < round(self._share * of_shard)
        goal = torch.where(is_relabelled.unsqueeze(-1), achieved, self._goal(index))
        return self.relabelled(index, goal)

    def relabelled(self, index: Tensor, goal: Tensor) -> TensorDict:
        """The steps at the places `index` `[B]`, with `goal` `[B, G]` in place of the task's.

        With the task's own goal they are the stored steps, bit for bit.
        """
        old = self._goal(index)

        def reward_at(place: Tensor) -> Tensor:
            own = self._goal(place)
            new = torch.where((own == old).all(-1, keepdim=True), goal, own)
            achieved = self._goals.achieved(self._observation(NEXT, place))
            parameters = {name: self._flat[PARAMETER + name][place] for name in self._parameters}
            change = self._goals.reward(achieved, new, parameters) - self._goals.reward(
                achieved, own, parameters
            )
            return self._flat["reward"][place] + change

        steps = self.steps_at(index, reward_at)
        for moment in (OBS, NEXT):
            observation = {group: steps[moment + group] for group in self._groups}
            for group, value in self._goals.replace(observation, old, goal).items():
                steps[moment + group] = value
        return steps

    def _future(self, index: Tensor) -> Tensor:
        """Of each step at `index` `[B]`, it or a later one of its episode, each equally likely."""
        uniform = torch.cat(self._random.uniform(len(index) // self._random.num_shards))
        return self._later(index, (uniform * (1 + self._num_later(index))).long())

    def _num_later(self, index: Tensor) -> Tensor:
        """How many later steps of its episode the ring holds, of each step at `index` `[B]`.

        By bisection: in an episode the age grows by one at each step, and a step of a later episode is always
        too young for that.
        """
        newest = (self._count - 1) % self._length
        fewest = torch.zeros_like(index)
        most = (newest - index // self._num_worlds) % self._length
        longest = min(self._max_episode_steps, self._length)
        most = most.clamp(max=longest)
        age = self._flat[AGE]
        for _ in range(longest.bit_length()):
            middle = (fewest + most + 1) // 2
            belongs = age[self._later(index, middle)] == age[index] + middle
            fewest = torch.where(belongs, middle, fewest)
            most = torch.where(belongs, most, middle - 1)
        return fewest

    def _goal(self, index: Tensor) -> Tensor:
        """The task's goal `[B, G]` at the places `index` `[B]`."""
        return self._goals.goal(self._observation(OBS, index))

    def _observation(self, moment: str, index: Tensor) -> dict[str, Tensor]:
        return {group: self._read(moment + group, index) for group in self._groups}

    @staticmethod
    def _age_after(age: Tensor, steps: Mapping[str, Tensor]) -> Tensor:
        """The age `[N]` of the steps that follow `steps`, which are at `age`."""
        return torch.where(steps["terminated"] | steps["truncated"], 0, age + 1)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        if self._count:
            newest = (self._count - 1) % self._length
            steps = {name: tensor[newest] for name, tensor in self._tensors.items()}
            self._next_age = self._age_after(steps[AGE], steps)
        else:
            self._next_age.zero_()
