"""Teachers that nobody had to train: linear controllers as networks, in run folders like any other."""

import pytest
import torch

from pi_incubator import checkpoint
from pi_incubator.algorithms import make_policy
from pi_incubator.checkpoint import Part
from pi_incubator.config import ExperimentConfig
from pi_incubator.envs import evaluation_env
from pi_incubator.networks import make_network
from pi_incubator.policies.actor_critic import ValueFunction
from pi_incubator.run_folder import RunFolder, begin

CPU = torch.device("cpu")
BALANCE_GAINS = [[0.1, 0.0, 3.0, 0.2, 0.8]]
"""Action for the cart's position, cos and sin of the pole's angle, and both velocities: it never falls."""


def _set_linear(policy, gains, log_std=-1.5):
    """Make the action of `policy`, with relu and one hidden layer, `gains` `[A, D]` times the observation."""
    gains = torch.tensor(gains)
    width = gains.shape[1]
    first, _, last = policy.head
    with torch.no_grad():
        for weight in policy.head.parameters():
            weight.zero_()
        first.weight[:width], first.weight[width : 2 * width] = torch.eye(width), -torch.eye(width)
        last.weight[:, :width], last.weight[:, width : 2 * width] = gains, -gains
        policy.log_std.fill_(log_std)


def _save_run(
    folder, gains, env="cartpole_balance", name="teacher", network="mlp", with_critic=True, **settings
):
    """A run of a linear policy, and of a value function, saved as if trained; returns its folder."""
    cfg = ExperimentConfig.model_validate(
        {
            "experiment": {"name": name, "output_dir": str(folder)},
            "env": {"name": env, "num_envs": 8},
            "network": {
                "name": network,
                "hidden_sizes": [16],
                "activation": "relu",
                "normalize_observations": False,
                **settings,
            },
            "algorithm": {"horizon": 32, "minibatch_size": 128},
            "evaluation": {"num_episodes": 8},
            "tracking": {"backend": "none"},
            "compute": {"device": "cpu"},
            "deployment": {"num_check_observations": 50},
        }
    )
    with RunFolder(cfg) as run:
        begin(cfg, run)
        worlds = evaluation_env(cfg, 1, CPU)
        policy = make_policy(cfg, worlds.spec)
        if gains is not None:
            _set_linear(policy, gains)
        parts = {"policy": Part(policy)}
        if with_critic:
            parts["critic"] = Part(ValueFunction(make_network(cfg.network, worlds.spec), policy))
        checkpoint.save(run, 0, cfg.steps_per_iteration, parts, cfg, keep=1)
        worlds.close()
    return run.path


@pytest.fixture(scope="session")
def set_linear():
    """Function that makes a policy linear."""
    return _set_linear


@pytest.fixture(scope="session")
def save_run():
    """Function that saves a run of a linear policy, or with gains=None of an untrained one."""
    return _save_run


@pytest.fixture(scope="session")
def balance(tmp_path_factory):
    """A run that balances the pole."""
    return _save_run(tmp_path_factory.mktemp("balance"), BALANCE_GAINS)
