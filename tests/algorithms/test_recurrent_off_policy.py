"""SAC and TD3 on networks with a state: what an update changes and leaves alone, and that they remember."""

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.config import ExperimentConfig
from pi_incubator.training.captured import CapturedStep
from tests.envs import ForgetfulEnv
from tests.learning import make_algorithm

CPU = torch.device("cpu")
N, T = 8, 4
SETTINGS = {
    "replay": "sequences",
    "sequence_length": T,
    "burn_in": 2,
    "batch_size": 8 * T,
    "buffer_size": 40 * N,
    "horizon": 16,
    "updates_per_step": 1 / 16,
    "learning_starts": 0,
}

SINGLE = {"replay": "uniform", "sequence_length": 32, "burn_in": 16}
"""For networks without a state."""


class Recall(ForgetfulEnv):
    """Worlds that show a number of -1 or 1 at the start of an episode alone, and reward its sign at the end.

    Group `policy` `[N, 2]` is the number, zero after the first step, and the time; `critic` has zeros behind.
    """

    LENGTH = 4

    def __init__(self, num_envs=N):
        obs_dims = {"policy": 2, "critic": 3}
        self.spec = EnvSpec("recall", num_envs, obs_dims, 1, (-1.0,), (1.0,), ("a",), 50.0, self.LENGTH, CPU)
        self._random = torch.Generator().manual_seed(0)
        self.reset(0)

    def reset(self, seed):
        self._time = torch.arange(self.num_envs) % self.LENGTH
        self._draw()
        self.obs = self._observe()
        return self.obs

    def step(self, action):
        is_last = self._time == self.LENGTH - 1
        reward = torch.where(is_last, action.squeeze(-1) * self._number, 0.0)
        self._time += 1
        final_obs = self._observe()
        self._time[is_last] = 0
        before = self._number
        self._draw()
        self._number = torch.where(is_last, self._number, before)
        self.obs = self._observe()
        no = torch.zeros_like(is_last)
        return StepResult(self.obs, reward, is_last, no, final_obs, {}, no)

    def _draw(self):
        self._number = torch.randint(0, 2, (self.num_envs,), generator=self._random) * 2.0 - 1.0

    def _observe(self):
        shown = torch.where(self._time == 0, self._number, 0.0)
        policy = torch.stack((shown, self._time / self.LENGTH), -1)
        critic = torch.cat((policy, torch.zeros(self.num_envs, 1)), -1)
        return TensorDict({"policy": policy, "critic": critic}, batch_size=[self.num_envs])


def make(name, env=None, network=None, **settings):
    torch.manual_seed(0)
    sections = {
        "env": {"num_envs": N},
        "network": {"name": "gru", "hidden_sizes": [8, 8]} | (network or {}),
        "algorithm": {"name": name} | SETTINGS | settings,
    }
    return make_algorithm(ExperimentConfig.model_validate(sections), env or Recall())


def weights_of(algorithm):
    """Everything that is learned, by name."""
    parts = {name: part.value.state_dict() for name, part in algorithm.parts().items() if part.is_learned}
    return {f"{part}.{key}": value.clone() for part, state in parts.items() for key, value in state.items()}


@pytest.fixture(params=["sac", "td3"])
def algorithm(request):
    algorithm = make(request.param)
    algorithm.collect()
    return algorithm


def test_an_update_changes_every_weight_and_its_target(algorithm):
    """The recurrent ones too, of policy and critics, and the critics' have one encoder between them."""
    before = weights_of(algorithm)
    metrics = algorithm.update()
    assert all(value.isfinite() for value in metrics.values())
    after = weights_of(algorithm)
    for name, value in before.items():
        if not name.startswith("policy.normalizer"):
            assert not torch.equal(value, after[name]), name
    recurrent = [value for name, value in before.items() if value.shape == (3 * 8, 8)]
    assert len(recurrent) == (3 if algorithm.settings.name == "sac" else 4)  # policy, critics, and targets


def test_broken_steps_are_not_learned_from(algorithm):
    """Whatever finite numbers stand in them, beside the observation before the step, which is sound."""
    minibatch = algorithm.minibatch(8 * T)
    minibatch["valid"][::2, 1] = False
    spoiled = minibatch.clone()
    for name in ("next.policy", "next.critic", "action", "reward", "noise"):
        spoiled[name][::2, 1] = 9.0
    for differentiate in (algorithm._critic_gradients, algorithm._actor_gradients):
        clean, changed = differentiate(minibatch)[0], differentiate(spoiled)[0]
        for one, other in zip(clean, changed, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_window_can_be_a_single_step():
    """Its features are those of one step of the cell from the stored state."""
    sac = make("sac", burn_in=0, sequence_length=1)
    sac.collect()
    minibatch = sac.minibatch(8 * T)
    normalized = sac.policy.normalizer["policy"](minibatch["obs.policy"][:, 0])
    expected, _ = sac.policy.encoder(normalized, minibatch["state"])
    torch.testing.assert_close(sac.actor_features.now(minibatch), expected)
    assert all(value.isfinite() for value in sac.update().values())


def test_nothing_is_learned_before_a_window_fits():
    algorithm = make("sac", horizon=2, updates_per_step=1.0)
    learned = []
    for _ in range(4):
        algorithm.collect()
        learned.append(bool(algorithm.update()))
    assert learned == [False, False, True, True]  # 2 + 4 steps of each world


def test_the_state_goes_on_through_random_actions_and_iterations():
    """The first actions are random, and the policy's state is carried all the same."""
    algorithm = make("sac", learning_starts=10_000)
    algorithm.collect()
    stored = algorithm.replay.state_dict()["state"]
    assert stored[0].abs().max() == 0
    assert stored[1][:3].abs().max() > 0
    first = torch.arange(16)[:, None] + torch.arange(N) % 4
    assert (stored[first % 4 == 0].abs() == 0).all()  # a new episode begins with zeros
    last = algorithm.state.clone()
    algorithm.collect()
    assert torch.equal(algorithm.replay.state_dict()["state"][16], last)


def test_a_captured_step_learns_what_an_eager_one_learns(algorithm):
    """As on CUDA, with a recorder that runs what it was given: windows have the same shapes at each call."""
    reference = make(algorithm.settings.name)
    reference.collect()
    if algorithm.settings.name == "sac":
        algorithm._step = CapturedStep(algorithm._step, capture=lambda function: function)
    else:
        steps = algorithm.steps
        steps._actor, steps._critics = (
            CapturedStep(one, capture=lambda function: function) for one in (steps._actor, steps._critics)
        )
    for _ in range(3):
        for one in (algorithm, reference):
            one.update()
    ours, theirs = weights_of(algorithm), weights_of(reference)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_critics_with_observations_of_their_own_learn_from_single_steps_too(name):
    """Their group is not the policy's, and each network reads its own."""
    algorithm = make(name, network={"name": "mlp"}, **SINGLE)
    algorithm.collect()
    before = weights_of(algorithm)
    assert all(value.isfinite() for value in algorithm.update().values())
    after = weights_of(algorithm)
    assert all(not torch.equal(value, after[key]) for key, value in before.items() if "normalizer" not in key)


def test_the_state_is_saved_where_there_is_one():
    """A checkpoint holds the states of every rank's worlds."""
    assert make("sac").parts()["state"].per_rank
    assert "state" not in make("sac", network={"name": "mlp"}, **SINGLE).parts()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "td3"])
def test_what_was_seen_before_is_remembered(name):
    """The number is shown at the start alone, and the action at the end has its sign."""
    settings = {"burn_in": 4, "sequence_length": 8, "batch_size": 64, "buffer_size": 4000, "gamma": 0.9}
    own = {"initial_temperature": 0.05, "lr_temperature": 1e-3} if name == "sac" else {"exploration_std": 0.3}
    rates = {"lr_actor": 3e-3, "lr_critic": 3e-3, "updates_per_step": 0.25, "learning_starts": 256}
    algorithm = make(name, **settings, **own, **rates, tau=0.02)
    for _ in range(40):
        algorithm.collect()
        algorithm.update()
    env, policy = Recall(64), algorithm.policy
    state, rewards = policy.initial_state(64), []
    with torch.no_grad():
        for _ in range(40):
            action, state = policy.mean(env.obs, state)
            result = env.step(action)
            state = torch.where(result.terminated[:, None], 0.0, state)
            rewards.append(result.reward[result.terminated])
    assert torch.cat(rewards[8:]).mean() > 0.8
