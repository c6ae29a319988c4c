"""An algorithm is two files, and so is a network: nothing else changes, all else works with them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALGORITHM_SETTINGS = '''
from typing import Literal

from pi_incubator.config.algorithm import RolloutSettings
from pi_incubator.config.section import Positive


class ToySettings(RolloutSettings):
    """Random search."""

    name: Literal["toy"] = "toy"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    step_size: Positive = 0.1
    """Standard deviation of the change to each weight of the last layer."""

    def samples_per_update(self, num_envs):
        return num_envs * self.horizon
'''
ALGORITHM = '''
import torch

from pi_incubator.checkpoint import Part
from pi_incubator.networks import make_network
from pi_incubator.policies.gaussian import GaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.algorithm import Algorithm
from pi_incubator.training.state import NamedTensors


@algorithm("toy")
class Toy(Algorithm):
    """Changes the last layer at random, and goes back where that was no better."""

    def __init__(self, cfg, env, distributed, compute):
        super().__init__(cfg, env, distributed, compute)
        self.policy = self.make_policy(cfg, env.spec)
        self.weight = self.policy.head[-1].weight.data
        self.best_weight = self.weight.clone()
        self.best = torch.tensor(-torch.inf)

    @staticmethod
    def make_policy(cfg, spec):
        return GaussianPolicy(cfg.network, make_network(cfg.network, spec), spec)

    @torch.no_grad()
    def collect(self):
        state = self.policy.initial_state(self.env.num_envs)
        self.reward = torch.zeros(())
        for _ in range(self.settings.horizon):
            action, state = self.policy.mean(self.env.obs, state)
            self.reward += self.env.step(action).reward.mean()

    def update(self):
        if self.reward > self.best:
            self.best.copy_(self.reward)
            self.best_weight.copy_(self.weight)
        self.weight.copy_(self.best_weight)
        if self.iteration + 1 < self.num_iterations:
            self.weight += self.settings.step_size * torch.randn_like(self.weight)
        self._finish_iteration()
        return {"toy/best": self.best.clone()}

    def parts(self):
        return super().parts() | {"best": Part(NamedTensors(reward=self.best, weight=self.best_weight))}
'''
NETWORK_SETTINGS = '''
from typing import Literal

from pi_incubator.config.network import NetworkSettings


class SineSettings(NetworkSettings):
    """Sines."""

    name: Literal["sine"] = "sine"
    """Network: the name of a file in pi_incubator/networks."""
    width: int = 8
    """Sines."""
'''
NETWORK = '''
import torch
from torch import nn

from pi_incubator.layers.encoder import Identity
from pi_incubator.layers.network import GroupNetwork
from pi_incubator.registry import network


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


@network("sine")
class SineNetwork(GroupNetwork):
    """One layer of sines, directly on the observation."""

    def encoder(self, group):
        return Identity(self.spec.obs_dims[group])

    def head(self, num_features, num_outputs, output_gain):
        width = self.settings.width
        return nn.Sequential(nn.Linear(num_features, width), Sine(), nn.Linear(width, num_outputs))
'''
CONFIG = """
experiment: {name: toy, output_dir: runs}
env: {name: cartpole_balance, num_envs: 8}
algorithm: {name: toy, horizon: 8, step_size: 0.5}
network: {name: sine, width: 6}
training: {total_steps: 640, log_every: 1}
checkpoint: {save_every: 2}
compute: {device: cpu, compile: "off"}
tracking: {backend: none}
evaluation: {num_episodes: 1}
deployment: {num_check_observations: 20}
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the packages with four new files."""
    root = tmp_path_factory.mktemp("copied")
    for package in ("pi_incubator", "envs_gpu", "kernels"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    new = {
        "config/algorithms/toy.py": ALGORITHM_SETTINGS,
        "algorithms/toy.py": ALGORITHM,
        "config/networks/sine.py": NETWORK_SETTINGS,
        "networks/sine.py": NETWORK,
    }
    for name, text in new.items():
        path = root / "pi_incubator" / name
        assert not path.exists()
        path.write_text(text)
    (root / "toy.yaml").write_text(CONFIG)
    return root


def command(root, module, *arguments):
    line = [sys.executable, "-m", f"pi_incubator.cli.{module}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, timeout=500)


def test_two_files_add_an_algorithm_and_two_a_network(copied):
    done = command(copied, "train", "--config", "toy.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = copied / "runs" / "toy"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = [row["toy/best"] for row in rows]
    assert len(best) == 10
    assert best == sorted(best)
    assert best[-1] > best[0]
    assert (folder / "policy.onnx").stat().st_size > 0
    assert json.loads((folder / "evaluation.json").read_text())["return"]["mean"] > 0
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())[-1]
    assert (folder / "checkpoints" / saved / "best.safetensors").exists()


def test_the_settings_of_new_files_are_checked_like_any_other(copied):
    for override, message in (
        ("algorithm.step_size=-1", "algorithm.step_size = -1"),
        ("algorithm.stepsize=1", "did you mean algorithm.step_size"),
        ("algorithm.name=tyo", "did you mean 'toy'"),
        ("network.name=sin", "did you mean 'sine'"),
    ):
        done = command(copied, "train", "--config", "toy.yaml", override)
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 2
        assert message in line
