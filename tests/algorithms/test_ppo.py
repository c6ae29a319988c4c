"""PPO's optimizer step, against torch's own optimizer and clipping."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.make import make_env
from envs_gpu.vec_env import VecEnv
from pi_incubator.algorithms.ppo import PPO
from pi_incubator.config import ExperimentConfig
from pi_incubator.training.adam import Adam, clip_by_norm
from pi_incubator.training.captured import NUM_WARM_UP, CapturedStep
from tests.learning import make_algorithm, state_of

MINIBATCH = 64


@pytest.fixture
def cfg() -> ExperimentConfig:
    sizes = {"horizon": 16, "minibatch_size": MINIBATCH, "entropy_coef": 0.01, "max_grad_norm": 0.5}
    settings = {"env": {"name": "cartpole_balance", "num_envs": 8}, "algorithm": sizes}
    return ExperimentConfig.model_validate(settings)


@pytest.fixture
def env() -> Iterator[VecEnv]:
    env = make_env("cartpole_balance", num_envs=8, device=torch.device("cpu"))
    yield env
    env.close()


def make_ppo(cfg: ExperimentConfig, env: VecEnv, compiled: bool = False) -> PPO:
    """The same weights every time."""
    torch.manual_seed(0)
    return make_algorithm(cfg, env, compiled)


def weights_of(ppo: PPO) -> dict[str, torch.Tensor]:
    return copy.deepcopy(ppo.model.state_dict())


def make_minibatch(ppo: PPO, seed: int) -> TensorDict:
    random, model = torch.Generator().manual_seed(seed), ppo.model

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(ppo.lr.device)

    observation = draw(MINIBATCH, ppo.env.spec.obs_dims["policy"])
    noise = draw(MINIBATCH, ppo.env.spec.action_dim)
    act = model.act({"policy": observation}, model.initial_state(MINIBATCH), noise)
    contents = {
        "policy": observation,
        "action": act.action.detach(),
        "action_log_prob": act.log_prob.detach() + 0.3 * draw(MINIBATCH),
        "advantage": draw(MINIBATCH, 1),
        "value_target": 5 * draw(MINIBATCH, 1),
        "state_value": act.value.detach().unsqueeze(-1),
    }
    return TensorDict(contents, batch_size=[MINIBATCH])


def test_the_loss_is_the_sum_of_its_terms(cfg, env):
    """The entropy's term is negative, as TorchRL gives it: more entropy, less loss."""
    ppo = make_ppo(cfg, env)
    minibatch = make_minibatch(ppo, 0)
    terms = ppo._loss_terms(ppo._with_features(minibatch))
    expected = terms["loss_objective"] + terms["loss_critic"] + terms["loss_entropy"]
    assert terms["loss_entropy"] == -0.01 * terms["entropy"]
    loss, report = ppo._losses(minibatch)
    assert torch.equal(loss, expected)
    # Schulman 2020: E[r - 1 - log r] estimates the KL divergence, and is never negative.
    ratio = log_ratio(ppo, minibatch).exp()
    torch.testing.assert_close(report[3], (ratio - 1.0 - ratio.log()).mean(), rtol=1e-4, atol=1e-6)


def log_ratio(ppo: PPO, minibatch: TensorDict) -> torch.Tensor:
    """Of the action's density now to that when it was chosen, `[B]`."""
    features, _ = ppo.policy.encoder(minibatch["policy"], torch.zeros(MINIBATCH, 0))
    distribution = torch.distributions.Normal(*ppo.policy.moments_of(features))
    return distribution.log_prob(minibatch["action"]).sum(-1) - minibatch["action_log_prob"]


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_steps_equal_those_of_torch(cfg, env, compiled):
    """The same loss, by torch's backward, `clip_grad_norm_` and `Adam`."""
    ppo, reference = make_ppo(cfg, env, compiled), make_ppo(cfg, env)
    theirs = list(reference.model.parameters())
    optimizer = torch.optim.Adam(theirs, lr=cfg.algorithm.lr, eps=1e-5)
    for seed in range(5):
        minibatch = make_minibatch(ppo, seed)
        report = ppo.step(minibatch)
        loss, expected = reference._losses(minibatch)
        optimizer.zero_grad()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(theirs, 0.5) > 0.5  # so that clipping is tested
        optimizer.step()
        torch.testing.assert_close(report, expected, rtol=1e-4, atol=1e-5)
    for ours, weight in zip(ppo.model.parameters(), theirs, strict=True):
        torch.testing.assert_close(ours, weight, rtol=1e-4, atol=1e-5)
    assert int(ppo.optimizer.step_count[0]) == 5


@pytest.mark.slow
def test_a_compiled_step_sees_a_new_learning_rate_and_loaded_state(cfg, env):
    """Nothing that changes between calls may have been compiled in."""
    ppo = make_ppo(cfg, env, compiled=True)
    minibatch = make_minibatch(ppo, 0)
    before = {name: copy.deepcopy(part.value.state_dict()) for name, part in ppo.parts().items()}
    first = ppo.step(minibatch)
    after = weights_of(ppo)
    for name, part in ppo.parts().items():
        part.value.load_state_dict(before[name])
    assert not all(torch.equal(after[name], value) for name, value in weights_of(ppo).items())
    assert torch.equal(ppo.step(minibatch), first)
    assert all(torch.equal(after[name], value) for name, value in weights_of(ppo).items())
    ppo.lr.zero_()
    ppo.step(minibatch)
    assert all(torch.equal(after[name], value) for name, value in weights_of(ppo).items())


def test_a_captured_step_reads_every_minibatch(cfg, env):
    """With a recorder that runs what it was given: replays know a minibatch by its place in memory alone."""
    ppo, reference = make_ppo(cfg, env), make_ppo(cfg, env)
    captured = CapturedStep(ppo.step, capture=lambda function: function)
    for seed in range(2 * NUM_WARM_UP):
        minibatch = make_minibatch(ppo, seed)
        kept = minibatch.clone()
        assert torch.equal(captured(minibatch), reference.step(kept))
        minibatch.zero_()  # a graph must not go on reading what it was called with
    for name, value in state_of(ppo).items():
        assert torch.equal(value, state_of(reference)[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_graph_replays_equal_plain_steps_on_cuda(cfg, compiled):
    env = make_env("cartpole_balance", backend="warp", num_envs=8, device=torch.device("cuda"))
    ppo, reference = make_ppo(cfg, env, compiled), make_ppo(cfg, env)
    for seed in range(2 * NUM_WARM_UP):
        minibatch = make_minibatch(reference, seed)
        gradients, expected = reference._gradients(minibatch)
        reference._apply(gradients)
        torch.testing.assert_close(ppo.step(minibatch), expected, rtol=1e-3, atol=1e-4)
    for weight, expected in zip(ppo.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-4)
    env.close()


def test_adam_equals_torch_over_many_steps():
    random = torch.Generator().manual_seed(0)
    ours = [torch.randn(3, 4, generator=random), torch.randn(5, generator=random)]
    theirs = [weight.clone().requires_grad_() for weight in ours]
    adam = Adam(ours, torch.tensor(1e-2), eps=1e-5)
    reference = torch.optim.Adam(theirs, lr=1e-2, eps=1e-5)
    for _ in range(50):
        gradients = [torch.randn(weight.shape, generator=random) for weight in ours]
        adam.step(gradients, torch.tensor(True))
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient
        reference.step()
    for weight, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected.detach())


def test_small_gradients_are_not_scaled_up():
    gradients = [torch.full((2,), 1e-3), torch.full((3,), -1e-3)]
    assert all(torch.equal(a, b) for a, b in zip(clip_by_norm(gradients, 1.0), gradients, strict=True))
