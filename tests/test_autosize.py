"""`env.num_envs: auto` climbs to the peak of the throughput, within memory, and once only for a run."""

import json
from pathlib import Path

import pytest
import torch

from envs_gpu.errors import SettingError
from pi_incubator import autosize, memory
from pi_incubator.autosize import candidates, choose
from pi_incubator.cli.train import main
from pi_incubator.config import ConfigError, ExperimentConfig, load_config

ROOT = Path(__file__).parents[1]
DOUBLINGS = [16, 32, 64, 128, 256, 512]


def auto(**sections):
    env = {"name": "cartpole_balance", "num_envs": "auto"} | sections.pop("env", {})
    return ExperimentConfig.model_validate({"env": env} | sections)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({16: 100, 32: 190, 64: 350, 128: 360, 256: 1000}, 64),  # flat: what lies behind is not looked for
        ({16: 100, 32: 190, 64: 120, 128: 500}, 32),
        ({16: 100, 32: 109.9}, 16),
        ({16: 100, 32: 110.1, 64: 110.2}, 32),
    ],
)
def test_it_stops_at_the_peak(curve, expected):
    choice = choose(DOUBLINGS, curve.__getitem__)
    assert choice.num_envs == expected
    assert list(choice.steps_per_s) == [number for number in DOUBLINGS if number <= 2 * expected]
    assert choice.stopped_by == f"{2 * expected} gain less than 10%"


def test_it_stops_where_memory_ends():
    choice = choose(DOUBLINGS, float, lambda num_envs: num_envs <= 128)
    assert (choice.num_envs, choice.stopped_by) == (128, "256 do not fit in memory")

    def measure(num_envs):
        if num_envs > 32:
            raise torch.OutOfMemoryError
        return float(num_envs)

    assert choose(DOUBLINGS, measure).num_envs == 32


def test_memory_is_asked_of_the_estimate(monkeypatch):
    cfg, device = auto(), torch.device("cpu")
    monkeypatch.setattr(autosize, "steps_per_s", lambda cfg, plan: float(cfg.env.num_envs))
    free = memory.estimate(cfg.with_num_envs(64), device).total
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    settled, plan = autosize.choose_num_envs(cfg, plan_of(cfg))
    assert settled.env.num_envs == 64
    assert plan.reasons[-1].endswith("16: 16, 32: 32, 64: 64; 128 do not fit in memory")
    monkeypatch.setattr(memory, "free_bytes", lambda device: free // 20)
    with pytest.raises(SettingError, match="needs about"):
        autosize.choose_num_envs(cfg, plan_of(cfg))


def plan_of(cfg):
    return autosize.ComputePlan(
        torch.device("cpu"), "mujoco", 1, 1, compiled=False, autocast="none", reasons=()
    )


@pytest.mark.parametrize("minibatch_size", [512, 96, 7, 4096])
@pytest.mark.parametrize("horizon", [64, 24, 1])
def test_minibatches_divide_the_batch_of_every_candidate(minibatch_size, horizon):
    cfg = auto(algorithm={"minibatch_size": minibatch_size, "horizon": horizon})
    numbers = candidates(cfg)
    assert numbers[0] >= autosize.FIRST
    assert len(numbers) > 3
    for num_envs in numbers:
        assert cfg.with_num_envs(num_envs).steps_per_iteration % minibatch_size == 0  # validated anew, too
    with pytest.raises(ValueError, match=r"total_steps|less than or equal"):
        cfg.with_num_envs(2 * numbers[-1])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"training": {"total_steps": 500}},
            r"auto 8 worlds \* algorithm\.horizon = 8 \* 64 = 512; set it to 512",
        ),
        (
            {"algorithm": {"minibatch_size": 2**31 - 1}},
            r"divides no batch .* set it to algorithm\.horizon = 64",
        ),
    ],
)
def test_where_no_number_fits_the_fix_is_named(sections, message):
    with pytest.raises(ValueError, match=message):
        auto(**sections)


def test_a_run_chooses_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(autosize, "SLICE_S", 0.01)
    settings = [
        *(
            "env.num_envs=auto",
            "algorithm.horizon=4",
            "algorithm.minibatch_size=32",
            "algorithm.num_epochs=1",
        ),
        *("training.total_steps=256", "training.log_every=1", "tracking.backend=none", "compute.compile=off"),
        *(
            "evaluation.num_episodes=1",
            "evaluation.video=false",
            "deployment.export=none",
            "evaluation.curve=false",
        ),
        *(f"experiment.output_dir={tmp_path}", "experiment.name=run"),
    ]
    command = ["--config", str(ROOT / "configs" / "ppo" / "cartpole_balance.yaml"), *settings]
    main(command)
    chosen = load_config(tmp_path / "run" / "config.yaml").env.num_envs
    assert chosen in (16, 32, 64)
    assert f"env.num_envs {chosen}: env steps/s of random actions are 16: " in capsys.readouterr().out

    def refuse(*_):
        raise AssertionError("a run that continues must not choose anew")

    monkeypatch.setattr(autosize, "choose", refuse)
    main([*command, "training.total_steps=1024"])
    assert load_config(tmp_path / "run" / "config.yaml").env.num_envs == chosen
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == list(range(4 * chosen, 1024 + 1, 4 * chosen))
    with pytest.raises(ConfigError, match=r"algorithm\.minibatch_size"):
        main([*command, "algorithm.minibatch_size=16"])
