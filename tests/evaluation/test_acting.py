"""A policy with a state is judged with it: carried from step to step, and zero when an episode begins."""

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.vec_env import StepResult
from pi_incubator.evaluation.acting import as_actor
from pi_incubator.evaluation.evaluate import evaluate, record_observations

LENGTHS = torch.tensor([1, 4, 9])


class CountingEnv:
    """World w's episodes end after `LENGTHS[w]` steps, some by truncation; an action is its reward."""

    num_envs, device = 3, torch.device("cpu")

    class spec:
        max_episode_steps = 9

    def reset(self, seed):
        self.age, self.num_steps = torch.zeros(3, dtype=torch.int64), 0
        return self.look()

    def look(self):
        return TensorDict({"policy": self.age[:, None].float()}, [3])

    def step(self, action):
        self.age += 1
        self.num_steps += 1
        ended, by_clock = self.age >= LENGTHS, self.num_steps % 2 == 0
        final_obs = self.look()
        self.age.masked_fill_(ended, 0)
        nobody = torch.zeros_like(ended)
        return StepResult(
            self.look(), action[:, 0], ended & (not by_clock), ended & by_clock, final_obs, {}, nobody
        )

    def pop_metrics(self):
        return {}

    def check(self):
        pass


class Counter:
    """Acts by how many steps it remembers, and checks that they are those of the episode."""

    def initial_state(self, num_worlds):
        return torch.zeros(num_worlds, 1)

    def mean(self, obs, state):
        assert torch.equal(state, obs["policy"])
        return state.clone(), state + 1.0


def test_evaluation_carries_and_resets_the_state():
    episodes = evaluate(CountingEnv(), Counter(), num_episodes=6, seed=0).episodes
    lengths = LENGTHS.repeat_interleave(2)
    assert episodes["length"].tolist() == lengths.tolist()
    assert episodes["return"].tolist() == [sum(range(length)) for length in lengths.tolist()]


def test_recording_does_too():
    assert record_observations(CountingEnv(), Counter(), count=30, seed=0)["policy"].shape == (30, 1)


def test_what_a_broken_policy_remembered_ends_with_the_episode():
    class Broken(Counter):
        def mean(self, obs, state):
            return state, torch.full_like(state, torch.nan)

    env, actor = CountingEnv(), as_actor(Broken(), 3)
    result = env.step(actor.act(env.reset(0)))
    actor.observe(result)
    assert actor.act(result.obs)[:, 0].tolist() == pytest.approx([0.0, torch.nan, torch.nan], nan_ok=True)


def test_a_function_acts_without_a_state():
    """What it is given are the groups of the observation, what it gives is the action."""
    actor = as_actor(lambda obs: obs["policy"] * 2.0, 3)
    env = CountingEnv()
    obs = env.reset(0)
    for _ in range(3):
        action = actor.act(obs)
        assert torch.equal(action, obs["policy"] * 2.0)
        result = env.step(action)
        actor.observe(result)
        assert actor.state.shape == (3, 0)
        obs = result.obs
