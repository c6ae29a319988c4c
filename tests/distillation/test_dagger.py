"""Whether students learn what their teachers know, and from whose mistakes."""

import math

import pytest
import torch
from pi_incubator.distillation.dagger import teacher_share
from pi_incubator.distillation.learner import StudentLearner
from pi_incubator.distillation.samples import Samples
from tensordict import TensorDict

from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.config import ExperimentConfig
from pi_incubator.distillation.collect import Collector
from pi_incubator.distillation.lessons import Lesson, split_worlds
from pi_incubator.distillation.teacher import Teacher
from pi_incubator.networks import make_network
from tests.envs import ForgetfulEnv

CPU = torch.device("cpu")
NUM_ENVS, GROWTH, CLIFF = 16, 2.0, 3.0


class Ridge(ForgetfulEnv):
    """A walk along a ridge: whoever is off it falls ever further off, and a known wind blows across.

    `off' = GROWTH off + action - wind`. Its teacher never leaves the ridge, and so never shows how to return.
    """

    def __init__(self):
        limits = ((-10.0,), (10.0,))
        self.spec = EnvSpec("ridge", NUM_ENVS, {"policy": 2}, 1, *limits, ("foot",), 10.0, 1000, CPU)
        self.reset(0)

    def reset(self, seed):
        self.off, self.time = torch.zeros(NUM_ENVS), torch.arange(NUM_ENVS) * 0.7
        return self._observe()

    def _observe(self):
        wind = 0.3 * self.time.sin()
        self.obs = TensorDict({"policy": torch.stack((self.off, wind), -1)}, batch_size=[NUM_ENVS])
        return self.obs

    def step(self, action):
        wind = self.obs["policy"][:, 1]
        self.off = (GROWTH * self.off + action[:, 0] - wind).clamp(-CLIFF, CLIFF)
        self.time = self.time + 0.3
        no = torch.zeros(NUM_ENVS, dtype=torch.bool)
        obs = self._observe()
        return StepResult(obs, -self.off.abs(), no, no, obs, {}, no)


def ridge_config(**distillation):
    return ExperimentConfig.model_validate(
        {
            "env": {"num_envs": NUM_ENVS},
            "network": {"hidden_sizes": [16], "activation": "tanh", "normalize_observations": False},
            "algorithm": {"horizon": 20, "minibatch_size": 16},
            "training": {"total_steps": 20 * 20 * NUM_ENVS},
            "distillation": {"exploration": 0.0, "num_updates": 50, "minibatch_size": 128, "lr": 5e-3}
            | distillation,
        }
    )


@pytest.fixture
def learn_on_the_ridge(set_linear):
    return lambda share, **distillation: _learn_on_the_ridge(set_linear, share, **distillation)


def _learn_on_the_ridge(set_linear, share, **distillation):
    """A student after 20 iterations, and what it learned from; `share` says when the teacher leads."""
    torch.manual_seed(0)
    cfg, env = ridge_config(**distillation), Ridge()
    network = cfg.network.model_copy(update={"activation": "relu"})
    teacher = Teacher("teacher", make_network(network, env.spec))
    set_linear(teacher.policy, [[-GROWTH, 1.0]])
    student = make_network(cfg.network, env.spec)
    learner, samples = StudentLearner(cfg, student, teacher.feature_width), Samples(10_000, CPU)
    collector = Collector(cfg, Lesson(cfg, teacher, env), student)
    for iteration in range(cfg.num_iterations):
        env.reset(iteration)
        learner.begin(iteration)
        collector.collect(samples, share(cfg, iteration))
        metrics = learner.update(samples)
    return student, samples, metrics


@torch.no_grad()
def mean_distance(policy):
    env, total = Ridge(), 0.0
    for _ in range(100):
        total -= env.step(policy.mean_action(env.obs)).reward.mean().item() / 100
    return total


def test_dagger_stays_where_behaviour_cloning_falls(learn_on_the_ridge):
    """Ross et al. 2011: errors that the demonstrations never show how to mend add up."""
    cloned, shown, _ = learn_on_the_ridge(lambda cfg, iteration: 1.0)
    taught, met, _ = learn_on_the_ridge(teacher_share)
    assert len(shown) == len(met)
    assert shown.held()["observation.policy"][:, 0].abs().max() < 1e-5
    assert mean_distance(cloned) > 1.0
    assert mean_distance(taught) < 0.05


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_value_and_feature_terms_are_learned_too(loss, learn_on_the_ridge):
    """Both are the share of a variance that is left over: 1 for a student that says the same always."""
    terms = {"value_coef": 1.0, "feature_coef": 1.0, "num_updates": 150}
    _, samples, metrics = learn_on_the_ridge(teacher_share, loss=loss, **terms)
    assert {"observation.policy", "mean", "std", "value", "features"} == set(samples.tensors)
    assert metrics["loss/value"] < 0.15
    assert metrics["loss/features"] < 0.2
    assert metrics["loss/distillation"] < 0.05


def test_terms_that_are_off_move_nothing(learn_on_the_ridge):
    torch.manual_seed(0)
    fresh = make_network(ridge_config().network, Ridge().spec)
    student, samples, metrics = learn_on_the_ridge(teacher_share, loss="mse")
    assert "features" not in samples.tensors
    assert torch.equal(student.log_std, fresh.log_std)
    assert metrics["loss/value"] == metrics["loss/features"] == 0


def test_the_teacher_leads_ever_fewer_worlds():
    cfg = ridge_config(teacher_phase=0.5)
    shares = [teacher_share(cfg, iteration) for iteration in range(cfg.num_iterations)]
    assert shares[:11] == pytest.approx([1 - i / 10 for i in range(11)])
    assert set(shares[10:]) == {0.0}
    assert teacher_share(ridge_config(teacher_phase=0.0), 0) == 0.0


def test_the_ring_keeps_the_newest():
    samples = Samples(5, CPU)
    for start in (0, 3, 6):
        samples.add({"x": torch.arange(start, start + 3)})
    assert sorted(samples.held()["x"].tolist()) == [4, 5, 6, 7, 8]
    assert set(samples.draw(200)["x"].tolist()) == {4, 5, 6, 7, 8}


def test_a_ring_that_is_too_small_keeps_whole_samples():
    samples = Samples(4, CPU)
    for _ in range(3):
        samples.add({"x": torch.arange(10), "y": -torch.arange(10)})
        assert sorted(samples.held()["x"].tolist()) == [6, 7, 8, 9]
        assert torch.equal(samples.held()["x"], -samples.held()["y"])


@pytest.mark.parametrize(
    ("weights", "shares"), [((), [6, 5, 5]), ((2.0, 1.0, 1.0), [8, 4, 4]), ((1.0, 1e-9, 1.0), [8, 1, 7])]
)
def test_worlds_are_shared_by_weight(weights, shares):
    cfg = ridge_config(teachers=["a", "b", "c"], weights=weights)
    got = split_worlds(cfg, 3)
    assert sum(got) == NUM_ENVS
    assert all(abs(a - b) <= 1 for a, b in zip(got, shares, strict=True))
    assert all(not math.isclose(share, 0) for share in got)
