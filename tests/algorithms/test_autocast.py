"""An update in bfloat16 leaves float32 weights, and teaches nearly what one in float32 does."""

import copy

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ExperimentConfig
from tests.envs import StillEnv
from tests.learning import make_algorithm

N, T = 16, 16
SPEC = EnvSpec(
    name="toy",
    num_envs=N,
    obs_dims={"policy": 3},
    action_dim=1,
    action_low=(-1.0,),
    action_high=(1.0,),
    joint_names=(),
    control_hz=50.0,
    max_episode_steps=100,
    device=torch.device("cpu"),
)


def learner(autocast):
    torch.manual_seed(0)
    sections = {
        "env": {"num_envs": N},
        "algorithm": {"horizon": T, "minibatch_size": 64, "lr": 3e-3, "lr_schedule": "constant"},
        "compute": {"autocast": autocast},
    }
    cfg = ExperimentConfig.model_validate(sections)
    return make_algorithm(cfg, StillEnv(SPEC))


def rollout(algorithm):
    """Actions are rewarded for being near to the first observed number."""
    seen = torch.randn(T * N, 3)
    with torch.no_grad():
        state = algorithm.model.initial_state(T * N)
        act = algorithm.model.act({"policy": seen}, state, torch.randn(T * N, 1))
    reward = -((act.action - seen[:, :1]) ** 2)
    done = torch.ones(T * N, 1, dtype=torch.bool)
    following = {"reward": reward, "terminated": done, "done": done, "state_value": torch.zeros(T * N, 1)}
    data = {
        "policy": seen,
        "action": act.action,
        "action_log_prob": act.log_prob,
        "state_value": act.value[:, None],
        "valid": done.clone(),
        "next": TensorDict(following, batch_size=[T * N]),
    }
    return TensorDict(data, batch_size=[T * N]).view(T, N), reward.mean().item()


@pytest.mark.parametrize("autocast", ["none", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_toy_task_is_learned(autocast):
    algorithm = learner(autocast)
    rewards = []
    for _ in range(60):
        data, reward = rollout(algorithm)
        algorithm.advantage(data)
        metrics = algorithm.learn(data)
        rewards.append(reward)
        assert all(value.isfinite() for value in metrics.values())
    assert sum(rewards[-5:]) > 0.5 * sum(rewards[:5])  # both are negative
    assert {weight.dtype for weight in algorithm.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("log_std", [0.0, -3.0])
def test_the_first_minibatch_finds_the_probabilities_that_acted(log_std):
    """KL and clip fraction are those of float32, not of rounded means over a small standard deviation."""
    algorithm = learner("bfloat16")
    with torch.no_grad():
        algorithm.policy.head[-1].weight.mul_(100.0)  # means of a trained policy: of order one
        algorithm.policy.log_std.fill_(log_std)
    seen, state = torch.randn(T * N, 3), algorithm.model.initial_state(T * N)
    with torch.no_grad():
        act = algorithm.act({"policy": seen}, state, torch.randn(T * N, 1))
    assert act.log_prob.dtype == torch.float32
    done = torch.ones(T * N, 1, dtype=torch.bool)
    samples = {"policy": seen, "action": act.action, "action_log_prob": act.log_prob, "valid": done}
    samples |= {"state_value": act.value[:, None], "value_target": torch.randn(T * N, 1)}
    samples |= {"advantage": torch.randn(T * N, 1)}
    _, report = algorithm._losses(TensorDict(samples, batch_size=[T * N]))
    kl, clip_fraction = report[3:]
    assert abs(kl) < 1e-5
    assert clip_fraction == 0.0


def test_bfloat16_is_used_and_off_by_default():
    assert ExperimentConfig().compute.autocast == "none"
    updates = {}
    for autocast in ("none", "bfloat16"):
        algorithm = learner(autocast)
        data, _ = rollout(algorithm)
        algorithm.advantage(data)
        before = copy.deepcopy(algorithm.policy.state_dict())
        algorithm.learn(data)
        updates[autocast] = algorithm.policy.head[0].weight.detach() - before["head.0.weight"]
    assert not torch.equal(updates["none"], updates["bfloat16"])
    similarity = torch.cosine_similarity(*(update.flatten() for update in updates.values()), dim=0)
    assert similarity > 0.9


def minibatch(size):
    random = torch.Generator().manual_seed(0)
    contents = {name: torch.randn(size, 3, generator=random) for name in ("obs.policy", "next.policy")}
    contents |= {"action": torch.rand(size, 1, generator=random), "noise": torch.zeros(size, 2, 1)}
    contents |= {"reward": torch.randn(size, generator=random)}
    contents |= {
        "num_steps": torch.ones(size, dtype=torch.int64),
        "valid": torch.ones(size, dtype=torch.bool),
    }
    contents |= {name: torch.arange(size) % 4 == 0 for name in ("terminated", "truncated")}
    return TensorDict(contents, batch_size=[size])


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_gradients_of_off_policy_losses_are_rounded_and_nearly_the_same(name):
    gradients = {}
    for autocast in ("none", "bfloat16"):
        torch.manual_seed(0)
        settings = {"name": name, "batch_size": 64, "buffer_size": 1000}
        sections = {"env": {"num_envs": N}, "algorithm": settings, "compute": {"autocast": autocast}}
        algorithm = make_algorithm(ExperimentConfig.model_validate(sections), StillEnv(SPEC))
        samples = minibatch(64)
        both = [*algorithm._critic_gradients(samples)[0], *algorithm._actor_gradients(samples)[0]]
        assert {gradient.dtype for gradient in both} == {torch.float32}
        gradients[autocast] = torch.cat([gradient.flatten() for gradient in both])
    assert not torch.equal(gradients["none"], gradients["bfloat16"])
    assert torch.cosine_similarity(gradients["none"], gradients["bfloat16"], dim=0) > 0.99
