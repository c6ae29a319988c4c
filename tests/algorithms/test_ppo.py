"""PPO's optimizer step, against torch's own optimizer and clipping."""

from __future__ import annotations

import copy

import pytest
import torch
from pi_incubator.algorithms._adam import Adam, clip_by_norm
from pi_incubator.algorithms._captured import NUM_WARM_UP, CapturedStep
from pi_incubator.networks._actor_critic import ActorCritic
from tensordict import TensorDict

from envs_gpu.make import make_env
from pi_incubator.algorithms import make_algorithm
from pi_incubator.config import ExperimentConfig
from pi_incubator.networks import make_network

MINIBATCH = 64


@pytest.fixture
def cfg() -> ExperimentConfig:
    sizes = {"horizon": 16, "minibatch_size": MINIBATCH, "entropy_coef": 0.01, "max_grad_norm": 0.5}
    settings = {"env": {"name": "cartpole_balance", "num_envs": 8}, "algorithm": sizes}
    return ExperimentConfig.model_validate(settings)


@pytest.fixture
def policy(cfg) -> ActorCritic:
    env = make_env("cartpole_balance", num_envs=8, device=torch.device("cpu"))
    spec = env.spec
    env.close()
    torch.manual_seed(0)
    return make_network(cfg.network, spec)


def make_minibatch(policy: ActorCritic, seed: int) -> TensorDict:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    observation = draw(MINIBATCH, policy.normalizer["policy"].mean.numel())
    act = policy.act({"policy": observation}, draw(MINIBATCH, policy.action_low.numel()))
    contents = {
        "policy": observation,
        "action": act.action.detach(),
        "action_log_prob": act.log_prob.detach() + 0.3 * draw(MINIBATCH),
        "advantage": draw(MINIBATCH, 1),
        "value_target": 5 * draw(MINIBATCH, 1),
        "state_value": act.value.detach().unsqueeze(-1),
    }
    return TensorDict(contents, batch_size=[MINIBATCH])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_steps_equal_those_of_torch(cfg, policy, compiled):
    """The same loss, by torch's backward, `clip_grad_norm_` and `Adam`."""
    theirs = copy.deepcopy(policy)
    learner, reference = make_algorithm(cfg, policy, compiled), make_algorithm(cfg, theirs)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=cfg.algorithm.lr, eps=1e-5)
    for seed in range(5):
        minibatch = make_minibatch(policy, seed)
        report = learner._learn(minibatch)
        loss, expected = reference._losses(minibatch)
        optimizer.zero_grad()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5) > 0.5  # so that clipping is tested
        optimizer.step()
        torch.testing.assert_close(report, expected, rtol=1e-4, atol=1e-5)
    for ours, weight in zip(policy.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, weight, rtol=1e-4, atol=1e-5)
    assert int(learner.optimizer.step_count[0]) == 5


def test_a_compiled_step_sees_a_new_learning_rate_and_loaded_state(cfg, policy):
    """Nothing that changes between calls may have been compiled in."""
    learner = make_algorithm(cfg, policy, compiled=True)
    minibatch = make_minibatch(policy, 0)
    before = learner.state_dict()
    weights = copy.deepcopy(policy.state_dict())
    first = learner._learn(minibatch)
    after = copy.deepcopy(policy.state_dict())
    learner.load_state_dict(before)
    policy.load_state_dict(weights)
    assert torch.equal(learner._learn(minibatch), first)
    assert all(torch.equal(after[name], value) for name, value in policy.state_dict().items())
    learner.lr.zero_()
    learner._learn(minibatch)
    assert all(torch.equal(after[name], value) for name, value in policy.state_dict().items())


def test_a_captured_step_reads_every_minibatch(cfg, policy):
    """With a recorder that runs what it was given: replays know a minibatch by its place in memory alone."""
    theirs = copy.deepcopy(policy)
    learner, reference = make_algorithm(cfg, policy), make_algorithm(cfg, theirs)
    captured = CapturedStep(learner._step, capture=lambda function: function)
    for seed in range(2 * NUM_WARM_UP):
        minibatch = make_minibatch(policy, seed)
        kept = minibatch.clone()
        assert torch.equal(captured(minibatch), reference._step(kept))
        minibatch.zero_()  # a graph must not go on reading what it was called with
    for ours, weight in zip(policy.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_graph_replays_equal_plain_steps_on_cuda(cfg, policy, compiled):
    ours, theirs = copy.deepcopy(policy).cuda(), copy.deepcopy(policy).cuda()
    learner, reference = make_algorithm(cfg, ours, compiled), make_algorithm(cfg, theirs)
    for seed in range(2 * NUM_WARM_UP):
        minibatch = make_minibatch(policy, seed).cuda()
        torch.testing.assert_close(
            learner._learn(minibatch), reference._step(minibatch), rtol=1e-3, atol=1e-4
        )
    for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-4)


def test_adam_equals_torch_over_many_steps():
    random = torch.Generator().manual_seed(0)
    ours = [torch.randn(3, 4, generator=random), torch.randn(5, generator=random)]
    theirs = [weight.clone().requires_grad_() for weight in ours]
    adam = Adam(ours, torch.tensor(1e-2), eps=1e-5)
    reference = torch.optim.Adam(theirs, lr=1e-2, eps=1e-5)
    for _ in range(50):
        gradients = [torch.randn(weight.shape, generator=random) for weight in ours]
        adam.step(gradients)
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient
        reference.step()
    for weight, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected.detach())


def test_small_gradients_are_not_scaled_up():
    gradients = [torch.full((2,), 1e-3), torch.full((3,), -1e-3)]
    assert all(torch.equal(a, b) for a, b in zip(clip_by_norm(gradients, 1.0), gradients, strict=True))
