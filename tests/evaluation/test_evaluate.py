"""Evaluation counts the episodes it should, each world's first ones, and nothing else."""

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.errors import BrokenWorldsError
from envs_gpu.make import make_env
from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.evaluation.evaluate import evaluate, record_observations
from tests.envs import ForgetfulEnv

MAX_STEPS = 30


class ScriptedEnv(ForgetfulEnv):
    """World w's episodes last `lengths[w]` steps, each `grows_by` more than the one before; a step is worth 1
    and costs what the action says."""

    def __init__(self, lengths, endless=False, grows_by=0):
        self.lengths, self.endless, self.grows_by = torch.tensor(lengths), endless, grows_by
        self.calls = []
        num_envs = len(lengths)
        cpu, limits = torch.device("cpu"), ((-1.0,), (1.0,))
        self.spec = EnvSpec("scripted", num_envs, {"policy": 2}, 1, *limits, ("hinge",), 10.0, MAX_STEPS, cpu)
        self.world = torch.arange(num_envs)
        self.num_steps = 0

    def observe(self):
        features = torch.stack((self.world, self.age), dim=-1).float()
        return TensorDict({"policy": features}, batch_size=[self.num_envs])

    def reset(self, seed):
        self.age = torch.zeros_like(self.world)
        self.obs = self.observe()
        return self.obs

    def step(self, action):
        self.num_steps += 1
        self.age += 1
        done = (self.age >= self.lengths) & (not self.endless)
        final_obs = self.observe()
        metrics = {"reward/alive": torch.ones(self.num_envs), "age": self.age.float()}
        self.age.masked_fill_(done, 0)
        self.lengths = self.lengths + self.grows_by * done
        self.obs = self.observe()
        reward = 1.0 - action[:, 0]
        nobody = torch.zeros_like(done)
        return StepResult(self.obs, reward, done, nobody, final_obs, metrics, nobody)

    def pop_metrics(self):
        self.calls.append("pop_metrics")
        return {}

    def check(self):
        self.calls.append("check")


def stand_still(obs):
    return torch.zeros(len(obs["policy"]), 1)


def test_short_episodes_are_not_over_represented():
    # The first six episodes to end would all be world 0's.
    evaluation = evaluate(ScriptedEnv([1, 10, 20]), stand_still, num_episodes=6, seed=0)
    assert evaluation.episodes["length"].tolist() == [1, 1, 10, 10, 20, 20]
    std = pytest.approx(7.760, abs=1e-3)
    assert evaluation.summary()["length"] == {"mean": 31 / 3, "std": std, "min": 1, "max": 20}


def test_each_world_gives_its_first_episodes_and_no_later_ones():
    """A world that is done early goes on while others are not, and what it does then does not count."""
    episodes = evaluate(ScriptedEnv([1, 10, 20], grows_by=1), stand_still, num_episodes=5, seed=0).episodes
    assert episodes["length"].tolist() == [1, 2, 10, 11, 20]
    assert episodes["return"].tolist() == [1, 2, 10, 11, 20]
    assert episodes["age"].tolist() == [1, 1.5, 5.5, 6, 10.5]


@pytest.mark.parametrize("num_episodes", [1, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("lengths", [[5], [1, 10, 20], [3] * 8])
def test_exactly_as_many_as_asked_for_and_evenly(lengths, num_episodes):
    episodes = evaluate(ScriptedEnv(lengths), stand_still, num_episodes, seed=0).episodes
    assert all(len(values) == num_episodes for values in episodes.values())
    whole, rest = divmod(num_episodes, len(lengths))
    expected = [length for world, length in enumerate(lengths) for _ in range(whole + (world < rest))]
    assert episodes["length"].tolist() == expected


def test_terms_are_summed_and_measures_averaged():
    episodes = evaluate(ScriptedEnv([4, 9]), stand_still, num_episodes=2, seed=0).episodes
    assert episodes["return"].tolist() == [4, 9]
    assert episodes["reward/alive"].tolist() == [4, 9]
    assert episodes["age"].tolist() == [2.5, 5]


def test_the_policy_may_be_an_object_and_its_actions_count():
    class Brake(torch.nn.Module):
        def initial_state(self, num_worlds):
            return torch.zeros(num_worlds, 0)

        def mean(self, obs, state):
            return torch.ones(len(obs["policy"]), 1), state

    evaluation = evaluate(ScriptedEnv([4, 9]), Brake(), num_episodes=2, seed=0)
    assert evaluation.episodes["return"].tolist() == [0, 0]


@pytest.mark.parametrize(("num_episodes", "num_steps"), [(1, 2), (2, 7), (3, 7), (4, 14)])
def test_ends_with_the_last_episode_that_counts(num_episodes, num_steps):
    env = ScriptedEnv([2, 7])
    assert evaluate(env, stand_still, num_episodes, seed=0).num_episodes == num_episodes
    assert env.num_steps == num_steps


def test_episodes_may_take_as_long_as_the_env_says():
    """Those that end with the last step that is allowed are complete."""
    assert evaluate(ScriptedEnv([MAX_STEPS]), stand_still, 2, seed=0).episodes["length"].tolist() == [30, 30]


def test_worlds_that_broke_and_found_no_room_are_told_at_the_end():
    """The env warns of contacts without room when its metrics are taken, and raises where too many broke."""

    class Broken(ScriptedEnv):
        def check(self):
            super().check()
            raise BrokenWorldsError("half of the worlds broke")

    env = Broken([2, 7])
    with pytest.raises(BrokenWorldsError):
        evaluate(env, stand_still, num_episodes=2, seed=0)
    assert env.calls == ["pop_metrics", "check"]


def test_an_env_that_never_ends_an_episode_is_named():
    env = ScriptedEnv([2], endless=True)
    with pytest.raises(RuntimeError, match="max_episode_steps"):
        evaluate(env, stand_still, num_episodes=3, seed=0)
    assert env.num_steps == 3 * MAX_STEPS


def test_no_episodes_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(ScriptedEnv([2]), stand_still, num_episodes=0, seed=0)


def test_recorded_observations_are_as_many_as_asked_for():
    observations = record_observations(ScriptedEnv([20] * 4), stand_still, count=250, seed=0)["policy"]
    assert observations.shape == (250, 2)
    assert set(observations[:, 1].tolist()) == set(map(float, range(20)))
    assert set(observations[:, 0].tolist()) == {0.0, 1.0}  # few worlds, so that the episodes are whole


@pytest.mark.parametrize(("count", "num_worlds"), [(1, 1), (5, 1), (199, 1), (200, 2), (300, 3), (1001, 4)])
def test_recorded_observations_are_of_few_worlds_and_whole_episodes(count, num_worlds):
    """Step after step of the same worlds, whose memory the env may use again."""

    class InPlace(ScriptedEnv):
        def observe(self):
            features = torch.stack((self.world, self.age), dim=-1).float()
            self.memory = features if not hasattr(self, "memory") else self.memory.copy_(features)
            return TensorDict({"policy": self.memory, "other": -self.memory}, batch_size=[self.num_envs])

    found = record_observations(InPlace([7] * 4), stand_still, count, seed=0)["policy"]
    steps = torch.arange(count) // num_worlds % 7
    assert found.tolist() == [[index % num_worlds, step] for index, step in enumerate(steps.tolist())]
    other = record_observations(InPlace([7] * 4), stand_still, count, seed=0, groups=("other",))["other"]
    assert torch.equal(other, -found)


def swing(obs):
    return obs["policy"][:, 3:4].sin()


def test_the_same_seed_gives_the_same_numbers_whatever_the_number_of_worlds():
    def run(num_envs, seed=3):
        env = make_env("cartpole_balance", num_envs=num_envs, device=torch.device("cpu"))
        # A falling pole does not end the episode: cut it short.
        env.task.max_episode_steps = 20
        return evaluate(env, swing, num_episodes=4, seed=seed).episodes

    first = run(4)
    assert {"return", "length", "upright"} <= first.keys()
    for name, values in run(4).items():
        assert torch.equal(values, first[name]), name
    for name, values in run(6).items():
        assert torch.equal(values, first[name]), name
    assert not torch.equal(run(4, seed=4)["return"], first["return"])
