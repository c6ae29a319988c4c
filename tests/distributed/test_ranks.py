"""Several ranks train as one: the same weights, one folder, one checkpoint, one reason when it fails."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "train_ranks.py"
PPO = """
env: {name: half_cheetah}
network: {hidden_sizes: [16]}
algorithm: {horizon: 16, num_epochs: 2, lr: 1e-3, lr_schedule: adaptive}
training: {total_steps: 100000}
compute: {device: cpu, compile: "off", shards: 2}
"""
SAC = """
env: {name: half_cheetah}
network: {hidden_sizes: [16]}
algorithm: {name: sac, horizon: 4, learning_starts: 64, buffer_size: 1024}
training: {total_steps: 100000}
compute: {device: cpu, compile: "off", shards: 2}
"""


def torchrun(num_ranks, *arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RL_WARNINGS": "0"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        **options,
    )


def weights_after(tmp_path, text, num_ranks, *settings):
    config, out = tmp_path / "config.yaml", tmp_path / f"{num_ranks}.safetensors"
    config.write_text(text)
    done = torchrun(num_ranks, WORKER, out, 5, config, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize(
    ("text", "two", "one"),
    [
        (
            PPO,
            ["env.num_envs=8", "algorithm.minibatch_size=32"],
            ["env.num_envs=16", "algorithm.minibatch_size=64"],
        ),
        (SAC, ["env.num_envs=4", "algorithm.batch_size=16"], ["env.num_envs=8", "algorithm.batch_size=32"]),
    ],
    ids=["ppo", "sac"],
)
def test_two_ranks_train_like_one_with_twice_the_worlds(tmp_path, text, two, one):
    """After five iterations in float64 weights, normalizer and metrics agree to 1e-10."""
    of_two, of_one = weights_after(tmp_path, text, 2, *two), weights_after(tmp_path, text, 1, *one)
    assert of_two.keys() == of_one.keys()
    assert any(name.startswith("metrics.") for name in of_one)
    for name, expected in of_one.items():
        torch.testing.assert_close(of_two[name].double(), expected.double(), rtol=1e-10, atol=1e-10, msg=name)
