"""Imagined rollouts: their return is differentiated correctly, and they agree with the simulator."""

import pytest
import torch

from envs_gpu.imagination import PHYSICS
from envs_gpu.make import make_env
from kernels.lambda_return import lambda_return
from pi_incubator.config import ExperimentConfig
from pi_incubator.networks import make_network
from pi_incubator.policies.squashed_gaussian import SquashedGaussianPolicy
from pi_incubator.world_models.dynamics import Dynamics
from pi_incubator.world_models.imagine import Noise, at_states, imagine, make_imagined_step

CPU = torch.device("cpu")
N, H = 4, 5


@pytest.fixture(params=["cartpole_swingup", "half_cheetah"])
def world(request):
    """An env, its imagination, a policy and an untrained model, in float64."""
    torch.manual_seed(0)
    env = make_env(request.param, backend="mujoco", num_envs=N, device=CPU, seed=0)
    imagination = env.imagination()
    cfg = ExperimentConfig.model_validate({"network": {"hidden_sizes": [8]}})
    policy = SquashedGaussianPolicy(cfg.network, make_network(cfg.network, env.spec), env.spec).double()
    dynamics = Dynamics(imagination.motion, env.spec.action_dim, [8], num_models=2).double()
    yield env, imagination, policy, dynamics
    env.close()


def make_noise(env, seed=0):
    random = torch.Generator().manual_seed(seed)
    widths = (env.spec.action_dim, env.spec.obs_dims["policy"])
    action, observation = (torch.randn(H, N, width, generator=random).double() for width in widths)
    return Noise(action, 0.05 * observation, torch.zeros(N, dtype=torch.int64))


def imagined_return(world):
    env, imagination, policy, dynamics = world
    noise = make_noise(env)
    start = at_states(imagination, policy, env.obs[PHYSICS].double(), noise.task)
    rollout = imagine(start, ("policy",), noise, make_imagined_step(imagination, dynamics, policy))
    discount = 0.9 * (~rollout.terminated).double()
    value = rollout.observation[1:].square().sum(-1)
    return lambda_return(rollout.reward, value, discount, 0.8, implementation="reference").mean()


def test_the_return_is_differentiated_as_finite_differences_do(world):
    """By weights of the policy, through all steps of the model and the task, to 1e-6 of the gradient."""
    policy = world[2]
    weights = list(policy.parameters())
    gradients = torch.autograd.grad(imagined_return(world), weights)
    random, eps = torch.Generator().manual_seed(1), 1e-6
    directions = [torch.randn(weight.shape, generator=random).double() for weight in weights]
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            for weight, direction in zip(weights, directions, strict=True):
                weight += sign * eps * direction
            values.append(imagined_return(world))
            for weight, direction in zip(weights, directions, strict=True):
                weight -= sign * eps * direction
    difference = (values[0] - values[1]) / (2 * eps)
    assert abs(expected) > 1e-4
    torch.testing.assert_close(expected, difference, rtol=1e-5, atol=1e-9)


def test_a_rollout_in_a_perfect_model_is_the_simulators(world):
    """With the simulator in the model's place, rewards and observations are those of the env."""
    env, imagination, policy, _ = world
    policy = policy.float()
    noise = make_noise(env)._replace(observation=torch.zeros(H, N, env.spec.obs_dims["policy"]))
    noise = noise._replace(action=noise.action.float())
    start = at_states(imagination, policy, env.obs[PHYSICS].clone(), noise.task)
    results = []

    def simulate(qpos, qvel, action):
        results.append(env.step(policy.to_env_units(action)))
        after = imagination.unpack(results[-1].final_obs[PHYSICS].clone())
        return after.qpos, after.qvel

    with torch.no_grad():
        rollout = imagine(start, ("policy",), noise, make_imagined_step(imagination, simulate, policy))
    reward = torch.stack([result.reward for result in results])
    observation = torch.stack([result.final_obs["policy"] for result in results])
    torch.testing.assert_close(rollout.reward, reward, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rollout.observation[1:], observation, rtol=1e-5, atol=1e-5)
    assert not rollout.terminated.any()
