"""Policies that act as if they had learned: normalizers have seen the env, and actions saturate."""

import functools
import hashlib
import json

import onnx
import pytest
import torch
from onnx import numpy_helper

from pi_incubator import checkpoint
from pi_incubator.algorithms import make_policy
from pi_incubator.checkpoint import Part
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.artifact import Source
from pi_incubator.deploy.contract import Origin
from pi_incubator.deploy.record import record
from pi_incubator.envs import evaluation_env
from pi_incubator.run_folder import RunFolder, begin

ORIGIN = Origin("c" * 64, "d" * 64, "0123abc", False, 12.25)
NUM_WORLDS = 4


class SharedSource(Source):
    """A source that exports once."""

    def artifact(self, precision="fp32"):
        made = self.__dict__.setdefault("made", {})
        if precision not in made:
            made[precision] = super().artifact(precision)
        return made[precision]


def make_source(task, history=1, network="mlp"):
    """What an export starts from; episodes are so short that some begin and end in the recording.

    `network` is a name, or settings beside it.
    """
    network = {"name": network} if isinstance(network, str) else network
    cfg = ExperimentConfig.model_validate(
        {
            "experiment": {"name": f"{task}_policy"},
            "env": {"name": task, "observation_history": history},
            "network": {"hidden_sizes": [32, 32], "activation": "elu"} | network,
            "compute": {"device": "cpu", "physics_threads": 1},
        }
    )
    torch.manual_seed(0)
    env = evaluation_env(cfg, NUM_WORLDS, torch.device("cpu"))
    env.task.max_episode_steps = 40
    policy = make_policy(cfg, env.spec)
    for _ in range(20):
        policy.normalizer.observe(dict(env.obs.items()))
        env.step(torch.randn(NUM_WORLDS, env.spec.action_dim))
    policy.normalizer.commit()
    with torch.no_grad():
        for parameter in policy.head[-1].parameters():
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


@pytest.fixture(scope="session")
def standing(tmp_path_factory):
    """The folder of a run of the Go1 that was never trained: it stands, which is worth something."""
    cfg = ExperimentConfig.model_validate(
        {
            "experiment": {"name": "standing", "output_dir": str(tmp_path_factory.mktemp("runs"))},
            "env": {"name": "go1_velocity"},
            "network": {"hidden_sizes": [16]},
            "evaluation": {"num_episodes": 2},
            "deployment": {"num_check_observations": 200},
            "compute": {"device": "cpu", "physics_threads": 1},
            "tracking": {"backend": "mlflow"},
        }
    )
    torch.manual_seed(0)
    with RunFolder(cfg) as folder:
        begin(cfg, folder)
        env = evaluation_env(cfg, 2, torch.device("cpu"))
        policy = make_policy(cfg, env.spec)
        checkpoint.save(folder, 0, cfg.steps_per_iteration, {"policy": Part(policy)}, cfg, keep=1)
        env.close()
    return folder


def sign(bundle):
    """Make a bundle's hashes those of its files, as somebody would who means harm."""
    contract = json.loads((bundle / "contract.json").read_text())
    contract["onnx"]["sha256"] = hashlib.sha256((bundle / "policy.onnx").read_bytes()).hexdigest()
    (bundle / "contract.json").write_text(json.dumps(contract))
    files = sorted(path for path in bundle.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (bundle / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def sign_anew():
    """Bundle -> its hashes made those of its files."""
    return sign


@pytest.fixture
def spoil():
    """Bundle, factor -> its weights multiplied, its hashes right."""

    def spoil(bundle, factor):
        model = onnx.load(bundle / "policy.onnx")
        for weight in model.graph.initializer:
            values = numpy_helper.to_array(weight)
            if values.ndim == 2 and min(values.shape) > 1:
                weight.CopyFrom(numpy_helper.from_array(values * values.dtype.type(factor), weight.name))
        onnx.save(model, bundle / "policy.onnx")
        sign(bundle)

    return spoil
