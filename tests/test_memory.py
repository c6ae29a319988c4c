"""A run says what memory it needs before it takes it, and near to what it then takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
from pi_incubator.algorithms import make_algorithm
from pi_incubator.compute import plan_compute
from pi_incubator.config import ExperimentConfig
from pi_incubator.memory import estimate
from pi_incubator.networks import make_network
from pi_incubator.trainers.on_policy import collect, make_act, make_training_env
from pi_incubator.trainers.rollout import Rollout
def run(num_envs, horizon):
    sections = {
        "env": {"name": "ant", "num_envs": num_envs},
        "algorithm": {"horizon": horizon, "minibatch_size": num_envs * horizon // 4, "num_epochs": 1},
        "compute": {"device": "cpu", "compile": "off"},
    }
    cfg = ExperimentConfig.model_validate(sections)
    plan = plan_compute(cfg)
    env = make_training_env(cfg, plan)
    policy = make_network(cfg.network, env.spec)
    learner = make_algorithm(cfg, policy, False)
    rollout = Rollout(horizon, env.spec, policy.groups)
    collect(env, policy, make_act(policy, False), rollout)
    learner.advantage(rollout.data)
    peak = []
    step = learner._learn
    learner._learn = lambda minibatch: (step(minibatch), peak.append(psutil.Process().memory_info().rss))[0]
    learner.update(rollout.data)
    return cfg, plan, max(peak)
_, _, before = run(8, 4)
cfg, plan, after = run(4096, 16)
print(json.dumps([after - before, estimate(cfg, plan.device).total]))
"""


def config(**sections):
    return ExperimentConfig.model_validate(sections)


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
    with pytest.raises(ConfigError) as caught:
        memory.check_memory(config(env={"num_envs": 65536}, training=LONG), CPU)
    most = int(str(caught.value).partition("at most ")[2].split()[0])
    memory.check_memory(config(env={"num_envs": most}, training=LONG), CPU)


def refuse(*_):
    raise torch.OutOfMemoryError("no room")


def ask_for_too_much(*_):
    torch.empty(10**16)


@pytest.mark.parametrize("fail", [refuse, ask_for_too_much])
def test_running_out_is_one_line_that_names_the_knob(tmp_path, monkeypatch, fail):

    monkeypatch.setattr("pi_incubator.trainers.on_policy.train", fail)
    place = [f"experiment.output_dir={tmp_path}", "tracking.backend=none", "compute.compile=off"]
    with pytest.raises(ConfigError, match=r"env\.num_envs = 64: cpu ran out of memory .*minibatch_size"):
        main(["--config", str(ROOT / "configs" / "cartpole_balance.yaml"), "env.num_envs=64", *place])
