"""Trainings on Ray clusters: they end like those of torchrun, whatever is killed meanwhile."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="the launcher needs Ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = """
env: {name: half_cheetah, num_envs: 8}
network: {hidden_sizes: [16]}
algorithm: {horizon: 16, minibatch_size: 64, num_epochs: 1}
training: {total_steps: 25600}
checkpoint: {save_every: 2}
evaluation: {num_episodes: 1, curve: false}
compute: {device: cpu, compile: "off"}
tracking: {backend: none}
deployment: {export: none}
"""
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "train_ppo.py",
]
LAUNCH = [sys.executable, "train_ppo.py", "--launcher", "ray", "compute.num_workers=2"]


@pytest.fixture
def start(tmp_path):
    """Starts the training with a command; whatever is left of it is killed at the end."""
    config = tmp_path / "run.yaml"
    config.write_text(RUN)
    started = []

    def start(name, command, *overrides):
        settings = [f"experiment.name={name}", f"experiment.output_dir={tmp_path}", *overrides]
        process = subprocess.Popen(
            [*command, "--config", str(config), *settings],
            cwd=ROOT,
            env=os.environ | {"RL_WARNINGS": "0", "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process, tmp_path / name

    yield start
    for process in started:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for member in family:
            member.kill()
        process.kill()
        process.communicate()


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two nodes with one CPU each, on this machine."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def ranks_of(name):
    """Rank -> process, of the training `name`."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "pi_incubator.cli.train" in words and f"experiment.name={name}" in words:
                found[int(process.environ()["RANK"])] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError):
            continue
    return found


def wait_for_checkpoint(process, folder):
    deadline_s = time.monotonic() + 240
    while not list(folder.glob("checkpoints/iter_*")):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def finish(process):
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output[-3000:]
    return output


def hash_of_last_policy(folder):
    *_, last = sorted(folder.glob("checkpoints/iter_*"))
    return last.name, hashlib.sha256((last / "policy.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def whole(start):
    """What torchrun makes of the training, undisturbed."""
    process, folder = start("whole", TORCHRUN)
    finish(process)
    return hash_of_last_policy(folder)


def test_a_cluster_of_our_own_trains_like_torchrun_also_after_a_rank_was_killed(start, whole):
    """The same bits; and of Ray, nothing is left."""
    process, folder = start("own", LAUNCH)
    wait_for_checkpoint(process, folder)
    ranks_of("own")[1].kill()
    output = finish(process)
    assert "rank 1 was ended by SIGKILL" in output
    assert "starting all ranks again (1 of 3)" in output
    assert "continuing at iteration" in output
    assert hash_of_last_policy(folder) == whole
    assert not ranks_of("own")


def test_a_lost_node_costs_time_and_no_bit(start, whole, cluster):
    """Its rank goes on where there is room, which here is less than was asked for."""
    process, folder = start("node", LAUNCH, f"compute.cluster={cluster.address}")
    wait_for_checkpoint(process, folder)
    (worker,) = cluster.worker_nodes
    cluster.remove_node(worker, allow_graceful=False)
    output = finish(process)
    assert "the cluster is smaller now: each rank gets 0.5 CPUs" in output
    assert hash_of_last_policy(folder) == whole


def test_a_head_that_starts_again_is_joined_again(start, whole, monkeypatch):
    """Everything of the cluster is lost with it, but for the checkpoints."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    first = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    process, folder = start("head", LAUNCH, f"compute.cluster={first.address}")
    try:
        wait_for_checkpoint(process, folder)
        port = int(first.address.rpartition(":")[2])
        first.shutdown()
        second = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "gcs_server_port": port})
        try:
            output = finish(process)
        finally:
            second.shutdown()
    finally:
        first.shutdown()
    assert "starting all ranks again" in output
    assert hash_of_last_policy(folder) == whole


def test_a_signal_ends_all_ranks_and_the_run_goes_on_later(start, whole):
    process, folder = start("stopped", LAUNCH)
    wait_for_checkpoint(process, folder)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output[-3000:]
    assert "saved after iteration" in output
    process, folder = start("stopped", LAUNCH)
    finish(process)
    assert hash_of_last_policy(folder) == whole


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("compute.num_workers=1000", "compute.num_workers = 1000: the cluster has room for"),
        ("compute.cluster=127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1; start one with"),
        ("checkpoint.resume=must", "checkpoint.resume = 'must': "),
    ],
)
def test_a_mistake_is_one_line_and_not_tried_again(start, override, problem):
    process, folder = start("refused", LAUNCH, override)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "starting all ranks again" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert problem in line
    assert not list(folder.glob("checkpoints/*"))
