"""`pi-bench scaling`: every size has its turns, processes run at the same time, efficiency is a quotient."""

from __future__ import annotations

import threading
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench import cli, scaling
from bench._result import read_result
from bench._train_plan import load
from bench._worker import Budget, Slice
from pi_incubator import autosize
from pi_incubator.config import load_config
from pi_incubator.errors import UserError

CONFIG = str(Path(__file__).parents[2] / "configs" / "ppo" / "cartpole_balance.yaml")
TINY = ["env.num_envs=4", "algorithm.horizon=8", "algorithm.minibatch_size=32", "algorithm.num_epochs=1"]


@pytest.mark.slow  # five processes; the tests below need none
def test_every_size_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scaling.json"
    sizes = ["--max-envs", "2", "--max-processes", "1", "--rounds", "2", "--seconds", "0.05"]
    cli.main(["scaling", "--config", CONFIG, *sizes, "--json", str(file), *TINY])
    result = read_result(file)
    assert result["bench"] == "scaling"
    assert result["settings"]["config"]["env.num_envs"] == 4
    metrics = result["metrics"]
    speeds = {name: metric for name, metric in metrics.items() if metric["unit"] == "steps/s"}
    points = ("worlds: 1", "worlds: 2", "processes: 1")
    assert set(speeds) == {f"{name}, {point}" for name in ("env.step", "training") for point in points}
    for metric in speeds.values():
        assert metric["better"] == "higher"
        assert len(metric["rounds"]) == 2
        assert min(metric["rounds"]) > 0
    one, two = (metrics[f"env.step, worlds: {size}"]["rounds"] for size in (1, 2))
    shares = [both / (2 * alone) for both, alone in zip(two, one, strict=True)]
    assert metrics["env.step, worlds: 2, efficiency"]["median"] == median(shares)
    table = " ".join(capsys.readouterr().out.split())  # a title is broken where its table ends
    assert "training / linear" in table
    assert "each process with 4 worlds; physics threads: 1" in table


class Meeting:
    """A worker whose turn ends only when all others have begun theirs."""

    def __init__(self, barrier: threading.Barrier, wall_s: float) -> None:
        self.barrier, self.wall_s = barrier, wall_s

    def run(self, budget: Budget) -> Slice:
        self.barrier.wait(timeout=20)
        return Slice(env_steps=100, wall_s=self.wall_s)


def test_processes_run_at_the_same_time_and_their_speeds_add_up() -> None:
    barrier = threading.Barrier(3)
    workers: list[Any] = [Meeting(barrier, wall_s) for wall_s in (1.0, 2.0, 4.0)]
    assert scaling.run_together(workers, Budget()) == 100 + 50 + 25


def test_linear_growth_has_an_efficiency_of_one() -> None:
    speeds = {1: [10.0, 20.0], 2: [20.0, 40.0], 4: [20.0, 20.0]}
    assert scaling.efficiency(speeds) == {1: [1.0, 1.0], 2: [1.0, 1.0], 4: [0.5, 0.25]}


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (256, [2**n for n in range(9)])]
)
def test_sizes_double_up_to_the_most(most: int, sizes: list[int]) -> None:
    assert scaling.doublings(most) == sizes


@pytest.mark.parametrize(("num_envs", "minibatch_size"), [(1, 64), (3, 64), (4, 256), (8, 512), (64, 512)])
def test_minibatches_fit_small_batches(num_envs: int, minibatch_size: int) -> None:
    cfg = load_config(CONFIG, ["algorithm.horizon=64", "algorithm.minibatch_size=512"])
    sized = scaling.with_worlds(cfg, num_envs)
    assert (sized.env.num_envs, sized.algorithm.minibatch_size) == (num_envs, minibatch_size)


def test_a_bench_settles_auto_before_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = {16: 1.0, 32: 2.0, 64: 2.1}
    monkeypatch.setattr(autosize, "steps_per_s", lambda cfg, plan: curve[cfg.env.num_envs])
    arguments = Namespace(config=CONFIG, overrides=["env.num_envs=auto"])
    assert load(arguments).env.num_envs == 32


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "soon"])
def test_the_length_of_a_turn_is_checked(text: str) -> None:
    with pytest.raises(UserError, match="is not a number above 0"):
        cli.main(["scaling", f"--seconds={text}"])
