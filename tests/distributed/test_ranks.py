"""Several ranks train as one: the same weights, one folder, one checkpoint, one reason when it fails."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from envs_gpu.make import make_env
from pi_incubator.data.datasets.recorder import Recorder, recorded

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "train_ranks.py"
PPO = """
env: {name: half_cheetah}
network: {hidden_sizes: [16]}
algorithm: {horizon: 16, num_epochs: 2, lr: 1e-3, lr_schedule: adaptive}
training: {total_steps: 100000}
compute: {device: cpu, compile: "off", shards: 2}
"""
GRPO = PPO.replace("horizon: 16", "name: grpo, group_size: 4, kl_coef: 0.1, horizon: 16")
A2C = PPO.replace("lr_schedule: adaptive", "entropy_coef: 0.01").replace("num_epochs: 2", "name: a2c")
ON_POLICY = (
    ["env.num_envs=8", "algorithm.minibatch_size=32"],
    ["env.num_envs=16", "algorithm.minibatch_size=64"],
)
SAC = """
env: {name: half_cheetah}
network: {hidden_sizes: [16]}
algorithm: {name: sac, horizon: 4, learning_starts: 64, buffer_size: 1024}
training: {total_steps: 100000}
compute: {device: cpu, compile: "off", shards: 2}
"""

TD3 = SAC.replace("name: sac", "name: td3, replay: prioritized, n_step: 3")
FLASH_SAC = SAC.replace("name: sac", "name: flash_sac, updates_per_step: 1").replace(
    "{hidden_sizes: [16]}", "{name: flash, actor_width: 8, critic_width: 8, num_blocks: 1}"
)
CROSSQ = SAC.replace("name: sac", "name: crossq").replace(
    "{hidden_sizes: [16]}", "{name: batch_norm, hidden_sizes: [16], critic_sizes: [16]}"
)
SAC_GRU = SAC.replace("network: {", "network: {name: gru, ").replace(
    "name: sac,", "name: sac, replay: sequences, sequence_length: 4, burn_in: 2, n_step: 2,"
)
WORLD_MODEL = SAC.replace("name: sac,", "name: world_model_gradient, imagined_steps: 4, num_models: 2,")
WORLD_MODEL = WORLD_MODEL.replace("horizon: 4,", "horizon: 4, model_sizes: [16], updates_per_step: 0.5,")
# In the untrained model, rollouts that begin with worlds about to fall end.
WORLD_MODEL_WITH_ENDS = WORLD_MODEL.replace("half_cheetah", "hopper")
# Bins of 4.9e8 would make differences of 1e-9 in a value out of those of 1e-17 in a probability.
DREAMER = """
env: {name: half_cheetah}
network: {name: rssm, hidden_sizes: [16], recurrent_size: 8, num_latents: 4, normalize_observations: true}
algorithm: {name: dreamer, horizon: 4, sequence_length: 4, learning_starts: 64, largest_symlog: 3}
training: {total_steps: 100000}
compute: {device: cpu, compile: "off", shards: 2}
"""
OVERLAPPED = SAC.replace("horizon: 4, learning_starts: 64", "horizon: 1, learning_starts: 8")
OVERLAPPED = OVERLAPPED.replace("training: {", "training: {overlap: true, ")
IQL = SAC.replace("name: sac, horizon: 4, learning_starts: 64,", "name: iql, horizon: 4, offline_updates: 4,")
IQL = IQL.replace("buffer_size", "updates_per_iteration: 2, buffer_size")
CQL = IQL.replace("name: iql", "name: cql, num_actions: 2")
OFF_POLICY = ["env.num_envs=4", "algorithm.batch_size=16"], ["env.num_envs=8", "algorithm.batch_size=32"]


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


def weights_after(tmp_path, text, num_ranks, *settings, dtype="float64"):
    config, out = tmp_path / "config.yaml", tmp_path / f"{num_ranks}.safetensors"
    config.write_text(text)
    done = torchrun(num_ranks, WORKER, out, 5, dtype, config, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


def record(folder):
    """Record some random steps, unless they are there; gives the folder."""
    if not folder.exists():
        env = make_env("half_cheetah", backend="mujoco", num_envs=4, device=torch.device("cpu"), seed=0)
        recorder = Recorder(folder, "random-0", env.spec)
        worlds, random = recorded(env, recorder), torch.Generator().manual_seed(0)
        for _ in range(20):
            worlds.step(2.0 * torch.rand(4, env.spec.action_dim, generator=random) - 1.0)
        recorder.flush()
        env.close()
    return folder


@pytest.mark.parametrize(
    ("text", "two", "one"),
    [
        (PPO, *ON_POLICY),
        *(pytest.param(text, *ON_POLICY, marks=pytest.mark.slow) for text in (GRPO, A2C)),
        *(
            pytest.param(text, *OFF_POLICY, marks=pytest.mark.slow)
            for text in (SAC, TD3, FLASH_SAC, CROSSQ, SAC_GRU, OVERLAPPED, WORLD_MODEL, DREAMER, IQL, CQL)
        ),
        pytest.param(WORLD_MODEL_WITH_ENDS, *OFF_POLICY, marks=pytest.mark.slow),
    ],
    ids=[
        *("ppo", "grpo", "a2c", "sac", "td3", "flash_sac", "crossq", "sac_gru", "sac_overlapped"),
        *("world_model_gradient", "dreamer", "iql", "cql", "world_model_gradient_with_ends"),
    ],
)
def test_two_ranks_train_like_one_with_twice_the_worlds(tmp_path, text, two, one):
    """After five iterations in float64 weights, normalizer and metrics agree to 1e-10."""
    if text in (IQL, CQL):  # two iterations on the dataset, each rank with its half, then three with worlds
        two, one = ([*settings, f"dataset={record(tmp_path / 'dataset')}"] for settings in (two, one))
    of_two, of_one = weights_after(tmp_path, text, 2, *two), weights_after(tmp_path, text, 1, *one)
    assert of_two.keys() == of_one.keys()
    assert any(name.startswith("metrics.") for name in of_one)
    for name, expected in of_one.items():
        torch.testing.assert_close(of_two[name].double(), expected.double(), rtol=1e-10, atol=1e-10, msg=name)


RUN = """
env: {name: half_cheetah, num_envs: 8}
network: {hidden_sizes: [16]}
algorithm: {horizon: 16, minibatch_size: 64, num_epochs: 1}
training: {total_steps: 25600}
checkpoint: {save_every: 2}
evaluation: {num_episodes: 1}
compute: {device: cpu, compile: "off"}
tracking: {backend: none}
deployment: {export: none}
"""


@pytest.fixture
def start(tmp_path):
    """Starts `train_ppo.py` under torchrun; whatever is left of it is killed at the end."""
    config = tmp_path / "run.yaml"
    config.write_text(RUN)
    started = []

    def start(name, *options):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            *options,
        ]
        settings = [f"experiment.name={name}", f"experiment.output_dir={tmp_path}"]
        process = subprocess.Popen(
            [*command, "train_ppo.py", "--config", str(config), *settings],
            cwd=ROOT,
            env=os.environ | {"RL_WARNINGS": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process, tmp_path / name

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            child.kill()
        process.kill()


def kill_rank(process, rank):
    """End one rank as if the machine had taken its memory."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            child.send_signal(signal.SIGKILL)
            return
    raise AssertionError("no such rank")


def wait_for_checkpoint(folder):
    while not list(folder.glob("checkpoints/iter_*")):
        time.sleep(0.02)


def hash_of_last_policy(folder):
    *_, last = sorted(folder.glob("checkpoints/iter_*"))
    return last.name, hashlib.sha256((last / "policy.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_result_is_the_same(start):
    """With --max-restarts=1 a rank that dies by SIGKILL costs time and no bit."""
    process, whole = start("whole")
    assert process.communicate(timeout=500)[0] is not None
    assert process.returncode == 0
    process, interrupted = start("interrupted", "--max-restarts=1")
    wait_for_checkpoint(interrupted)
    kill_rank(process, 1)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output[-3000:]
    assert "continuing at iteration" in output
    assert hash_of_last_policy(interrupted) == hash_of_last_policy(whole)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_within_five_seconds(start):
    """Nobody waits for a dead rank, and the summary names its end."""
    process, folder = start("dies")
    wait_for_checkpoint(folder)
    kill_rank(process, 1)
    began_s = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - began_s < 5.0
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in output or "exitcode: -9" in output.replace(" ", "")


@pytest.mark.slow
def test_settings_that_ranks_cannot_share_are_refused_once(tmp_path):
    """One line, from rank 0, before anything is simulated."""
    config = tmp_path / "run.yaml"
    config.write_text(RUN)
    done = torchrun(
        2, "train_ppo.py", "--config", config, f"experiment.output_dir={tmp_path}", "compute.shards=3"
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    problem = "compute.shards = 3: cannot be divided among 2 processes; set it to a multiple of 2, or 0"
    assert lines == [f"error: command line: {problem}"]
    assert not list(tmp_path.glob("*/checkpoints"))
