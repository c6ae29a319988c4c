"""A run says what memory it needs before it takes it, and near to what it then takes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from envs_gpu.errors import SettingError
from pi_incubator import memory
from pi_incubator.cli.train import main
from pi_incubator.config import ConfigError, ExperimentConfig

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
FACTOR = 2.0
LONG = {"total_steps": 10**9}
# The parts of a run in a fresh process: resident memory after one iteration, less that of a tiny run before.
PROGRAM = """
import json, sys, psutil, torch
from pi_incubator.algorithms import algorithm_class
from pi_incubator.compute import plan_compute
from pi_incubator.config import ExperimentConfig
from pi_incubator.distributed import Distributed
from pi_incubator.memory import estimate
def run(num_envs, horizon):
    sections = {
        "env": {"name": "ant", "num_envs": num_envs},
        "algorithm": {"horizon": horizon, "minibatch_size": num_envs * horizon // 4, "num_epochs": 1},
        "compute": {"device": "cpu", "compile": "off"},
    }
    cfg = ExperimentConfig.model_validate(sections)
    plan = plan_compute(cfg)
    kind, alone = algorithm_class(cfg), Distributed()
    algorithm = kind(cfg, kind.make_env(cfg, plan, None, alone), alone, plan)
    algorithm.collect()
    peak = []
    step = algorithm.step
    algorithm.step = lambda minibatch: (step(minibatch), peak.append(psutil.Process().memory_info().rss))[0]
    algorithm.update()
    return cfg, plan, max(peak)
_, _, before = run(8, 4)
cfg, plan, after = run(4096, 16)
print(json.dumps([after - before, estimate(cfg, plan.device).total]))
"""


def config(**sections):
    return ExperimentConfig.model_validate(sections)


@pytest.mark.slow
def test_the_estimate_is_near_what_a_run_takes():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured, expected = json.loads(done.stdout.splitlines()[-1])
    assert measured / FACTOR < expected < measured * FACTOR, (measured, expected)


def test_what_cannot_fit_is_refused_before_anything_is_made(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_text(
        "env: {name: cartpole_balance, num_envs: 1048576}\n"
        "algorithm: {horizon: 65536}\n"
        "training: {total_steps: 1000000000000}\n"
        f"experiment: {{output_dir: {tmp_path}, name: huge}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        main(["--config", str(path)])
    assert caught.value.exit_code == 2
    assert "env.num_envs = 1048576: needs about " in str(caught.value)
    assert "set at most " in str(caught.value)
    assert not (tmp_path / "huge" / "config.yaml").exists()


def test_the_number_that_is_named_fits(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 200_000_000)
    with pytest.raises(SettingError) as caught:
        memory.check_memory(config(env={"num_envs": 65536}, training=LONG), CPU)
    most = int(re.search(r"at most (\d+)", str(caught.value))[1])
    memory.check_memory(config(env={"num_envs": most}, training=LONG), CPU)


def test_a_buffer_that_cannot_fit_is_refused_with_the_steps_that_would(tmp_path, monkeypatch):
    """It is refused before anything is simulated, and what the message names is accepted."""
    path = tmp_path / "huge.yaml"
    path.write_text(
        "env: {name: cartpole_balance}\n"
        "algorithm:\n  name: sac\n  buffer_size: 2000000000\n"
        f"experiment: {{output_dir: {tmp_path}, name: huge}}\n"
    )
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000_000)
    with pytest.raises(ConfigError) as caught:
        main(["--config", str(path), "compute.device=cpu"])
    found = re.fullmatch(
        rf"{re.escape(str(path))}:4: algorithm\.buffer_size = 2000000000: needs about \d+ GB, "
        r"1 GB are free on cpu; set it to at most (\d+)",
        str(caught.value),
    )
    assert found
    assert not (tmp_path / "huge" / "config.yaml").exists()
    most = int(found[1])
    sac = {"name": "sac", "buffer_size": most}
    memory.check_memory(config(env={"name": "cartpole_balance"}, algorithm=sac), CPU)
    sac["buffer_size"] = most + most // 20
    with pytest.raises(SettingError):
        memory.check_memory(config(env={"name": "cartpole_balance"}, algorithm=sac), CPU)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_a_replay_buffer_counts_with_its_bytes(storage, replay):
    """A full buffer of SAC holds what is counted, to 1 %; a checkpoint makes no copy of it."""
    from pi_incubator.algorithms import algorithm_class
    from pi_incubator.checkpoint import take_snapshot
    from pi_incubator.compute import plan_compute
    from pi_incubator.distributed import Distributed

    cfg = config(
        env={"name": "ant", "num_envs": 64},
        algorithm={
            "name": "sac",
            "buffer_size": 640,
            "learning_starts": 700,
            "storage": storage,
            "replay": replay,
        },
        compute={"device": "cpu", "compile": "off"},
    )
    plan, kind, alone = plan_compute(cfg), algorithm_class(cfg), Distributed()
    algorithm = kind(cfg, kind.make_env(cfg, plan, None, alone), alone, plan)
    for _ in range(10):
        algorithm.collect()
    snapshot = take_snapshot(0, 640, algorithm.parts())
    saved, state = snapshot.states["replay"], algorithm.replay.state_dict()
    assert all(saved[name].data_ptr() == state[name].data_ptr() for name in ("reward", "obs.policy"))
    algorithm.close()
    held = sum(tensor.nbytes for tensor in saved.values())
    assert memory.estimate(cfg, CPU).storage == pytest.approx(held, rel=0.01)


def test_layers_count_with_the_copies_that_a_save_makes(monkeypatch):
    """Layers whose weights and moments fit on a CPU, and not their copies too, are refused at once."""
    num_weights = 1_000_000
    monkeypatch.setattr(memory, "free_bytes", lambda device: 5 * 4 * num_weights)
    monkeypatch.setattr(memory, "estimate", lambda *_: memory.MemoryEstimate(0, 0, 0))
    cfg = config(network={"name": "mlp", "hidden_sizes": [1000, 1000]}, training=LONG)
    with pytest.raises(SettingError, match=r"network\.hidden_sizes"):
        memory.check_memory(cfg, CPU)
    memory.check_memory(cfg, torch.device("cuda"))  # the copies are on the host


def refuse(*_):
    raise torch.OutOfMemoryError("no room")


def ask_for_too_much(*_):
    torch.empty(10**16)


@pytest.mark.parametrize("fail", [refuse, ask_for_too_much])
def test_running_out_is_one_line_that_names_the_knob(tmp_path, monkeypatch, fail):

    monkeypatch.setattr("pi_incubator.loop.train", fail)
    place = [f"experiment.output_dir={tmp_path}", "tracking.backend=none", "compute.compile=off"]
    with pytest.raises(ConfigError, match=r"env\.num_envs = 64: cpu ran out of memory .*minibatch_size"):
        main(["--config", str(ROOT / "configs" / "ppo" / "cartpole_balance.yaml"), "env.num_envs=64", *place])


def test_recorded_steps_count_until_they_are_written():
    """Pictures reach the size of a shard after some thousand steps, vectors at a checkpoint."""

    def recording(env, network="mlp", **training):
        sections = {"network": {"name": network}, "training": LONG | training}
        algorithm = {"horizon": 4, "minibatch_size": 64, "num_epochs": 1}
        cfg = config(env=env, algorithm=algorithm, **sections)
        return memory.estimate(cfg, CPU).recording

    vectors = {"name": "cartpole_balance", "num_envs": 64}
    assert recording(vectors) == 0
    numbers_of_step = 2 * 5 + 1 + 1  # observations, action and reward, float32; three flags
    assert recording(vectors, record="data") == 2 * 50 * 4 * 64 * (4 * numbers_of_step + 3)
    pixels = {"name": "cartpole_balance", "num_envs": 64, "pixels": {"width": 64, "height": 64}}
    assert recording(pixels, "cnn", record="data") == pytest.approx(2 * 2**28, rel=0.01)


def test_observations_in_bfloat16_take_half_the_memory():
    """And nothing else does: actions, rewards and flags stay as they are."""

    def storage(precision):
        settings = {"name": "sac", "buffer_size": 1000, "storage": precision}
        return memory.estimate(config(env={"name": "ant", "num_envs": 8}, algorithm=settings), CPU).storage

    one, other = storage("float32"), storage("bfloat16")
    assert other < one < 2 * other
