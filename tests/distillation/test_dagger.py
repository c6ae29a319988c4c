"""Whether students learn what their teachers know, and from whose mistakes."""

import math

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.config import ExperimentConfig
from pi_incubator.distillation.buffer import LabelBuffer
from pi_incubator.distillation.lessons import split_worlds
from pi_incubator.errors import DivergedError
from tests.distillation.toy import ToyDistillation, make_teacher
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
    settings = {"name": "distillation", "teachers": ["teacher"], "horizon": 20, "buffer_size": 10_000}
    settings |= {"exploration": 0.0, "num_updates": 50, "minibatch_size": 128, "lr": 5e-3}
    return ExperimentConfig.model_validate(
        {
            "env": {"num_envs": NUM_ENVS},
            "network": {"hidden_sizes": [16], "activation": "tanh", "normalize_observations": False},
            "algorithm": settings | distillation,
            "training": {"total_steps": 20 * 20 * NUM_ENVS},
        }
    )


@pytest.fixture
def on_the_ridge(set_linear):
    """Function that prepares a student and its teacher."""

    def make(**distillation):
        torch.manual_seed(0)
        cfg, env = ridge_config(**distillation), Ridge()
        network = cfg.network.model_copy(update={"activation": "relu"})
        teacher = make_teacher("teacher", network, env.spec)
        set_linear(teacher.policy, [[-GROWTH, 1.0]])
        return ToyDistillation(cfg, env, teacher)

    return make


def learn(distillation, teacher_share=None):
    """20 iterations, with a given share of worlds that the teacher acts in, or the scheduled one."""
    for iteration in range(distillation.num_iterations):
        distillation.env.reset(iteration)
        if teacher_share is None:
            distillation.collect()
        else:
            distillation.collect_with(teacher_share)
        metrics = distillation.update()
    return metrics


@torch.no_grad()
def mean_distance(policy):
    env, total, state = Ridge(), 0.0, policy.initial_state(NUM_ENVS)
    for _ in range(100):
        total -= env.step(policy.mean(env.obs, state)[0]).reward.mean().item() / 100
    return total


def test_dagger_stays_where_behaviour_cloning_falls(on_the_ridge):
    """Ross et al. 2011: errors that the demonstrations never show how to mend add up."""
    cloned, taught = on_the_ridge(), on_the_ridge()
    learn(cloned, teacher_share=1.0)
    learn(taught)
    assert len(cloned.buffer) == len(taught.buffer)
    assert cloned.buffer.held()["observation.policy"][:, 0].abs().max() < 1e-5
    assert mean_distance(cloned.policy) > 1.0
    assert mean_distance(taught.policy) < 0.05


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_value_and_feature_terms_are_learned_too(loss, on_the_ridge):
    """Both are the share of a variance that is left over: 1 for a student that says the same always."""
    distillation = on_the_ridge(loss=loss, value_coef=1.0, feature_coef=1.0, num_updates=150)
    metrics = learn(distillation)
    names = {"observation.policy", "mean", "std", "value", "features"}
    assert names == set(distillation.buffer.tensors)
    assert metrics["loss/value"] < 0.15
    assert metrics["loss/features"] < 0.2
    assert metrics["loss/distillation"] < 0.05


def test_terms_that_are_off_move_nothing(on_the_ridge):
    """The standard deviation that the student begins with is the teacher's, and mse leaves it alone."""
    distillation = on_the_ridge(loss="mse")
    (before,) = (w.clone() for w in [distillation.student.critic.head[0].weight])
    metrics = learn(distillation)
    teacher = distillation.lessons[0].teacher.policy
    assert "features" not in distillation.buffer.tensors
    assert torch.equal(distillation.policy.log_std, teacher.log_std)
    assert torch.equal(distillation.student.critic.head[0].weight, before)
    assert metrics["loss/value"] == metrics["loss/features"] == 0


def test_a_standard_deviation_that_depends_on_the_observation_is_learned():
    """That of a teacher, which one number for all observations cannot be."""
    divergence = []
    for depends in (False, True):
        torch.manual_seed(0)
        cfg, env = ridge_config(exploration=0.5, num_updates=20), Ridge()
        settings = cfg.network.model_copy(update={"state_dependent_std": True, "init_log_std": -1.0})
        teacher = make_teacher("teacher", settings, env.spec)
        torch.nn.init.normal_(teacher.policy.head[-1].weight, std=0.3)
        network = cfg.network.model_copy(update={"state_dependent_std": depends})
        student = ToyDistillation(cfg.model_copy(update={"network": network}), env, teacher)
        metrics = learn(student)
        divergence.append(metrics["policy/kl"].item())
        assert ("policy/std" in metrics) != depends
    assert divergence[0] > 0.01
    assert divergence[1] < 0.001


def test_the_teacher_acts_in_ever_fewer_worlds(on_the_ridge):
    distillation, shares = on_the_ridge(teacher_phase=0.5), []
    for iteration in range(distillation.num_iterations):
        distillation.counters.iteration = iteration
        shares.append(distillation._teacher_share())
    assert shares[:11] == pytest.approx([1 - i / 10 for i in range(11)])
    assert set(shares[10:]) == {0.0}
    assert len(shares) == 20
    assert on_the_ridge(teacher_phase=0.0)._teacher_share() == 0.0


def test_the_ring_keeps_the_newest():
    buffer = LabelBuffer(5, CPU)
    for start in (0, 3, 6):
        buffer.add({"x": torch.arange(start, start + 3)})
    assert sorted(buffer.held()["x"].tolist()) == [4, 5, 6, 7, 8]
    assert set(buffer.sample(200)["x"].tolist()) == {4, 5, 6, 7, 8}


def test_a_ring_that_is_too_small_keeps_whole_samples():
    buffer = LabelBuffer(4, CPU)
    for _ in range(3):
        buffer.add({"x": torch.arange(10), "y": -torch.arange(10)})
        assert sorted(buffer.held()["x"].tolist()) == [6, 7, 8, 9]
        assert torch.equal(buffer.held()["x"], -buffer.held()["y"])


@pytest.mark.parametrize("num_added", [0, 3, 7])
def test_a_ring_continues_where_it_was_saved(num_added):
    """Not yet full and overwritten: the rows keep their places, and the next ones replace the oldest."""
    one, other = LabelBuffer(5, CPU), LabelBuffer(5, CPU)
    for value in range(num_added):
        one.add({"x": torch.tensor([value])})
    other.load_state_dict(one.state_dict())
    for buffer in (one, other):
        buffer.add({"x": torch.tensor([10, 11])})
    assert torch.equal(one.held()["x"], other.held()["x"])
    assert len(one) == len(other) == min(5, num_added + 2)


@pytest.mark.parametrize("count", [-1, 2, 4, 99])
def test_a_saved_ring_that_holds_other_rows_than_it_says_is_refused(count):
    """Rows that were never stored would be sampled."""
    one, other = LabelBuffer(5, CPU), LabelBuffer(5, CPU)
    one.add({"x": torch.arange(3), "y": torch.arange(3)})
    other.add({"x": torch.arange(7, 9), "y": torch.arange(7, 9)})
    with pytest.raises(ValueError, match=f"of {count} rows"):
        other.load_state_dict(one.state_dict() | {"count": torch.tensor(count)})
    with pytest.raises(ValueError, match="'y'"):
        other.load_state_dict(one.state_dict() | {"y": torch.arange(2)})
    assert other.held()["x"].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("weights", "shares"), [((1, 1, 1), [6, 5, 5]), ((2, 1, 1), [8, 4, 4]), ((1.0, 1e-9, 1.0), [8, 1, 7])]
)
def test_worlds_are_shared_by_weight(weights, shares):
    got = split_worlds(NUM_ENVS, weights)
    assert sum(got) == NUM_ENVS
    assert all(abs(a - b) <= 1 for a, b in zip(got, shares, strict=True))
    assert all(not math.isclose(share, 0) for share in got)


def test_updates_that_are_not_finite_are_counted_and_change_nothing(on_the_ridge):
    distillation = on_the_ridge(num_updates=3)
    distillation.collect()
    for name, held in distillation.buffer.held().items():
        if name.startswith("obs"):
            held.fill_(math.nan)
    before = [weight.detach().clone() for weight in distillation.parameters]
    distillation.update()
    assert distillation.skipped.pop() == 3
    assert all(torch.equal(*pair) for pair in zip(before, distillation.parameters, strict=True))


def test_the_watched_ranges_of_rounding_layers_are_saved(on_the_ridge):
    distillation, other = on_the_ridge(fake_quantize="int8"), on_the_ridge(fake_quantize="int8")
    distillation.collect()
    distillation.update()
    part, theirs = (one.parts()["ranges"].value for one in (distillation, other))
    saved = {name: value.clone() for name, value in part.state_dict().items()}
    assert any(low < 0 < high for low, high in saved.values())
    theirs.load_state_dict(saved)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in saved.items())


def test_rounding_begins_with_its_phase(on_the_ridge):
    """In the last half of four iterations, and so in the third one."""
    distillation = on_the_ridge(fake_quantize="int8", fake_quantize_phase=0.5)
    distillation.num_iterations, rounds = 4, []
    for _ in range(4):
        distillation.collect()
        distillation.update()
        rounds.append({layer.rounds for layer in distillation.rounding_layers})
    assert rounds == [{False}, {False}, {True}, {True}]


def test_a_student_that_is_not_finite_stops_the_run(on_the_ridge):
    distillation = on_the_ridge()
    with torch.no_grad():
        distillation.policy.log_std.fill_(math.nan)
    with pytest.raises(DivergedError, match="not finite"):
        distillation.check()


def test_the_critic_is_learned_and_the_feature_map_is_of_this_training_alone(on_the_ridge):
    """What a run that starts from this one takes over."""
    parts = on_the_ridge().parts()
    assert {name for name, part in parts.items() if part.is_learned} == {"policy", "critic"}


def test_the_learning_rate_falls_to_zero_in_equal_steps(on_the_ridge):
    distillation = on_the_ridge(lr=4e-3)
    distillation.num_iterations, rates = 4, []
    for _ in range(4):
        distillation.collect()
        rates.append(distillation.update()["policy/lr"].item())
    assert rates == pytest.approx([4e-3, 3e-3, 2e-3, 1e-3])
