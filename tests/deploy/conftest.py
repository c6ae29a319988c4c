"""Policies that act as if they had learned: normalizers have seen the env, and actions saturate."""

import functools

import pytest
import torch

from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.artifact import Source
from pi_incubator.deploy.contract import Origin
from pi_incubator.deploy.record import record
from pi_incubator.evaluation.worlds import evaluation_env
from pi_incubator.networks import make_network

ORIGIN = Origin("c" * 64, "0123abc", False, 12.25)
NUM_WORLDS = 4


class SharedSource(Source):
    """A source that exports once."""

    def artifact(self, precision="fp32"):
        made = self.__dict__.setdefault("made", {})
        if precision not in made:
            made[precision] = super().artifact(precision)
        return made[precision]


def make_source(task, history=1, network="mlp"):
    """What an export starts from; episodes are so short that some begin and end in the recording."""
    cfg = ExperimentConfig.model_validate(
        {
            "experiment": {"name": f"{task}_policy"},
            "env": {"name": task, "observation_history": history},
            "network": {"name": network, "hidden_sizes": [32, 32], "activation": "elu"},
            "compute": {"device": "cpu", "physics_threads": 1},
        }
    )
    torch.manual_seed(0)
    env = evaluation_env(cfg, NUM_WORLDS, torch.device("cpu"))
    env.task.max_episode_steps = 40
    policy = make_network(cfg.network, env.spec)
    for _ in range(20):
        policy.gather(dict(env.obs.items()))
        env.step(torch.randn(NUM_WORLDS, env.spec.action_dim))
    policy.commit()
    with torch.no_grad():
        for parameter in policy.actor[-1].parameters():
            parameter.mul_(100.0)  # the last layer begins small: now some actions meet their limits
    return SharedSource(cfg, env, policy, ORIGIN, record(env, policy, 400, seed=7))


@pytest.fixture(scope="session")
def source_of():
    """Task, history and network -> the `Source` that tests share, and do not change."""
    return functools.cache(make_source)


@pytest.fixture(scope="session")
def walker(source_of):
    """A quadruped's policy, and the artifact of it."""
    source = source_of("go1_velocity", 1, "mlp")
    return source, source.artifact()
