"""Policy gradients through a learned model: what is refused, and what the loss is."""

import copy
from pathlib import Path

import pytest
import torch

from envs_gpu.errors import SettingError
from envs_gpu.imagination import PHYSICS
from kernels.lambda_return import lambda_return
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.data.replay.replay import OBS
from pi_incubator.envs import make_training_env
from tests.learning import make_algorithm

CONFIG = Path(__file__).parents[2] / "configs" / "world_model_gradient" / "cartpole_swingup.yaml"
SMALL = {
    "name": "world_model_gradient",
    "batch_size": 16,
    "buffer_size": 400,
    "sequence_length": 4,
    "num_models": 2,
    "model_sizes": [8],
    "imagined_steps": 3,
    "starts_per_window": 2,
    "learning_starts": 40,
}


def make(name="cartpole_swingup", compiled=False, **changes):
    """The algorithm on four worlds, with some steps in its buffer."""
    torch.manual_seed(0)
    sections = {
        "env": {"name": name, "num_envs": 4, "backend": "mujoco"},
        "network": {"hidden_sizes": [8]},
        "algorithm": SMALL | changes,
        "compute": {"device": "cpu", "compile": "off"},
    }
    cfg = ExperimentConfig.model_validate(sections)
    plan = type("Plan", (), {"device": torch.device("cpu"), "physics_threads": 1, "compiled": False})
    learner = make_algorithm(cfg, make_training_env(cfg, plan), compiled)
    for _ in range(15):
        learner.collect()
    return learner


@pytest.mark.parametrize(
    ("name", "problem"), [("ant", "reads sensors"), ("inverted_pendulum", "reward of the task cannot be")]
)
def test_a_task_that_cannot_be_imagined_is_refused(name, problem):
    """In one line that names the setting, before training starts."""
    with pytest.raises(SettingError, match=problem) as caught:
        make(name)
    assert caught.value.field == "env.name"
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("network.name=gru", "network.name"),
        ("env.observation_history=2", "env.observation_history"),
        ("algorithm.batch_size=12", "algorithm.batch_size"),
        ("algorithm.starts_per_window=3", "algorithm.starts_per_window"),
        ("algorithm.sequence_length=2048", "algorithm.batch_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting, field):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIG, [setting])
    assert f"{field} = " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_learning_rates_fall_to_their_share():
    """Linearly over the iterations; that of the temperature stays."""
    learner = make(lr_share_at_end=0.1, lr_model=1e-2, lr_actor=1e-3, lr_critic=2e-3, lr_temperature=3e-3)
    learner.counters.iteration = learner.num_iterations // 2
    learner.step(learner.minibatch(16))
    names = ("model", "actor", "critic", "temperature")
    rates = [getattr(learner, f"{name}_optimizer").lr.item() for name in names]
    assert rates == pytest.approx([0.55e-2, 0.55e-3, 1.1e-3, 3e-3], rel=1e-3)


@pytest.mark.slow
def test_compiled_gradients_are_the_eager_ones():
    """Of the model through its window and of the policy through imagination: every step hands one back."""
    gradients = []
    for compiled in (False, True):
        learner = make(compiled=compiled)
        minibatch = learner.minibatch(16)
        gradients.append([*learner._model_gradients(minibatch)[0], *learner._policy_gradients(minibatch)[0]])
    eager, compiled = gradients
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


def test_each_model_gets_the_same_number_of_windows_and_rollouts():
    """Windows are sampled shard by shard, and ordered by the models that learn from them."""
    learner = make()
    minibatch = learner.minibatch(16)
    assert minibatch.batch_size == (4,)
    assert minibatch[OBS + PHYSICS].shape == (4, 4, learner.imagination.width)
    assert minibatch["action_noise"].shape == (4, 2, 3, 1)
    rollout = learner._imagine(minibatch)
    assert rollout.reward.shape == (3, 8)
    learner.close()


def test_the_losses_are_those_of_the_papers():
    """Lambda returns and their weights, written out here step by step, on a task whose episodes end."""
    learner = make("hopper", reward_scale=0.5, gamma=0.9, return_lambda=0.7)
    minibatch = learner.minibatch(16)
    _, report = learner._policy_gradients(minibatch)
    with torch.no_grad():
        rollout = learner._imagine(minibatch)
        values = torch.stack([critic(rollout.observation) for critic in learner.targets]).mean(0)
        ours = torch.stack([critic(rollout.observation[:-1]) for critic in learner.critics])
    num_steps = len(rollout.reward)
    target, discount = values[-1], 0.9 * (~rollout.terminated).float()
    targets = []
    for t in reversed(range(num_steps)):
        follows = values[t + 1] if t == num_steps - 1 else 0.3 * values[t + 1] + 0.7 * target
        target = 0.5 * rollout.reward[t] + discount[t] * follows
        targets.insert(0, target)
    actor, critic, weight = 0.0, 0.0, torch.ones_like(target)
    temperature = learner.log_temperature.exp()
    for t in range(num_steps):
        actor = actor - (weight * (targets[t] - temperature * rollout.log_prob[t])).mean() / num_steps
        critic = critic + 0.5 * (weight * (ours[:, t] - targets[t]).square()).mean(1).sum() / num_steps
        weight = weight * discount[t]
    torch.testing.assert_close(report[:2], torch.stack((actor, critic)))
    learner.close()


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def imagined_return(learner, minibatch, critics):
    """Mean of the lambda returns of a minibatch's rollouts, each discounted to where its rollout starts."""
    settings, rollout = learner.settings, learner._imagine(minibatch)
    value = torch.stack([critic(rollout.observation[1:]) for critic in critics]).mean(0)
    discount = settings.gamma * (~rollout.terminated)
    returns = lambda_return(settings.reward_scale * rollout.reward, value, discount, settings.return_lambda)
    return (torch.cat((torch.ones_like(discount[:1]), discount[:-1])).cumprod(0) * returns).mean()


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", ["cartpole_swingup", "hopper"])
def test_the_policy_climbs_the_imagined_return(name):
    """Its gradient is minus that of the return, by finite differences, and an optimizer step raises it."""
    learner = make(name, initial_temperature=1e-12, lr_model=1e-12, tau=1e-12, lr_actor=1e-4)
    minibatch, critics = learner.minibatch(16), copy.deepcopy(learner.targets)
    weights, random, eps = list(learner.policy.parameters()), torch.Generator().manual_seed(1), 1e-6
    directions = [torch.randn(weight.shape, generator=random) for weight in weights]
    gradients, _ = learner._policy_gradients(minibatch)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=False))
    values = []
    with torch.no_grad():
        for step in (eps, -2.0 * eps, eps):
            for weight, direction in zip(weights, directions, strict=True):
                weight += step * direction
            values.append(imagined_return(learner, minibatch, critics))
        assert abs(slope) > 1e-4
        torch.testing.assert_close(-slope, (values[0] - values[1]) / (2.0 * eps), rtol=1e-5, atol=1e-9)
        before = values[-1]
    learner.step(minibatch)
    with torch.no_grad():
        assert imagined_return(learner, minibatch, critics) > before
    learner.close()


def test_the_model_learns_in_training():
    """Its error falls over updates on random steps."""
    learner = make(updates_per_step=0.5, lr_model=0.01, model_sizes=[32])
    losses = []
    for _ in range(60):
        learner.collect()
        losses.append(learner.update()["loss/model"].item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    learner.close()
