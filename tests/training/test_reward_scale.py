"""The scale of rewards, against numpy on the same returns."""

import numpy as np
import torch

from envs_gpu.vec_env import StepResult
from pi_incubator.distributed import Distributed
from pi_incubator.training.reward_scale import RewardScale

CPU = torch.device("cpu")
GAMMA, LARGEST, T, N = 0.9, 5.0, 50, 4


def step_result(reward, ends):
    none = torch.zeros(N, dtype=torch.bool)
    return StepResult({}, reward, ends, none, {}, {}, none)


def random_steps(offset=0.0):
    random = torch.Generator().manual_seed(1)
    rewards = offset + torch.randn(T, N, generator=random)
    return rewards, torch.rand(T, N, generator=random) < 0.1


def scale_of(rewards, ends):
    scale = RewardScale(N, GAMMA, LARGEST, CPU)
    for reward, end in zip(rewards, ends, strict=True):
        scale.observe(step_result(reward, end))
    scale.commit(Distributed())
    return scale


def returns_of(rewards, ends):
    returns, now = [], np.zeros(N)
    for reward, end in zip(rewards.numpy(), ends.numpy(), strict=True):
        now = GAMMA * now + reward
        returns.append(now.copy())
        now[end] = 0.0
    return np.stack(returns)


def test_rewards_are_divided_by_the_deviation_of_returns():
    rewards, ends = random_steps()
    returns = returns_of(rewards, ends)
    assert returns.std() > np.abs(returns).max() / LARGEST
    np.testing.assert_allclose(scale_of(rewards, ends).scale, returns.std(), rtol=1e-5)


def test_the_largest_return_fits_into_the_bound():
    rewards, ends = random_steps()
    rewards[7, 2] = 40.0
    returns = returns_of(rewards, ends)
    assert returns.std() < np.abs(returns).max() / LARGEST
    np.testing.assert_allclose(scale_of(rewards, ends).scale, np.abs(returns).max() / LARGEST, rtol=1e-5)


def test_nothing_counts_before_it_is_committed():
    scale = RewardScale(N, GAMMA, LARGEST, CPU)
    scale.observe(step_result(torch.full((N,), 100.0), torch.zeros(N, dtype=torch.bool)))
    assert scale.scale == 1.0


def test_without_rewards_nothing_is_divided_by_zero():
    assert scale_of(torch.zeros(T, N), torch.zeros(T, N, dtype=torch.bool)).scale > 0


def test_it_continues_from_what_was_saved():
    rewards, ends = random_steps(offset=1.0)
    whole, first = scale_of(rewards, ends), scale_of(rewards[:20], ends[:20])
    second = RewardScale(N, GAMMA, LARGEST, CPU)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    second.returns.copy_(first.returns)
    for reward, end in zip(rewards[20:], ends[20:], strict=True):
        second.observe(step_result(reward, end))
    second.commit(Distributed())
    torch.testing.assert_close(second.scale, whole.scale)
    assert torch.equal(second.returns, whole.returns)
