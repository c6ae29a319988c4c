"""`pi-bench` measures what it says, and reports a user's mistake as one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from bench import everything
from bench._kernel_peers import PEERS, NotRun, consistent_inputs
from bench.cli import main
from pi_incubator.cli._main import run
from pi_incubator.errors import UserError

ROOT = Path(__file__).parents[2]
TINY = (
    "compute.compile=off",
    "algorithm.horizon=16",
    "algorithm.minibatch_size=16",
    "algorithm.num_epochs=1",
)
NUM_ROUNDS = 2


def bench(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "bench.cli", *argv]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=300, cwd=ROOT, env=os.environ | environment
    )


def bench_train(folder: Path, *argv: str) -> tuple[dict[str, Any], str]:
    """The JSON and the printed table of `pi-bench train` with tiny settings."""
    file = folder / "result.json"
    turns = ("--rounds", str(NUM_ROUNDS), "--iterations", "2", "--json", str(file))
    done = bench("train", *turns, *argv)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    settings = ("env.name=cartpole_balance", "env.num_envs=4", *TINY)
    return bench_train(tmp_path_factory.mktemp("alone"), "--peer", "none", *settings)


def test_the_report_says_where_it_was_measured(alone: tuple[dict[str, Any], str]) -> None:
    report, _ = alone
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["memory_gb"] > 0
    assert report["versions"]["mujoco"]
    assert {"measured_at", "git", "environment", "comparisons"} <= report.keys()
    assert report["comparisons"]["own"]["config"]["env.name"] == "cartpole_balance"


def test_every_loop_takes_its_turn_in_every_round(alone: tuple[dict[str, Any], str]) -> None:
    report, table = alone
    own = report["comparisons"]["own"]
    assert len(own["rounds"]) == NUM_ROUNDS
    for turns in own["rounds"]:
        assert list(turns) == ["pi_incubator", "physics"]
        for turn in turns.values():
            assert turn["env_steps"] == 2 * 4 * 16
            assert turn["wall_s"] > 0
            assert turn["steps_per_s"] == turn["env_steps"] / turn["wall_s"]
    assert "own: pi_incubator" in table
    assert "4 worlds x 16 steps" in table


def test_ratios_are_quotients_of_the_same_round(alone: tuple[dict[str, Any], str]) -> None:
    own = alone[0]["comparisons"]["own"]
    speeds = [{name: turn["steps_per_s"] for name, turn in turns.items()} for turns in own["rounds"]]
    metrics = alone[0]["metrics"]
    ratio = metrics["own: pi_incubator/physics"]
    assert ratio["rounds"] == [speed["pi_incubator"] / speed["physics"] for speed in speeds]
    assert ratio["median"] == median(ratio["rounds"])
    ours = metrics["own: pi_incubator"]
    assert ours["median"] == median(speed["pi_incubator"] for speed in speeds)
    assert (ours["unit"], ours["better"]) == ("steps/s", "higher")


@pytest.mark.slow
def test_identical_settings_reach_both_sides(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="the peer is an extra: pip install -e '.[peers]'")
    settings = ("env.num_envs=2", *TINY, "network.hidden_sizes=[32, 16]")
    report, table = bench_train(tmp_path, "--identical", *settings)
    identical = report["comparisons"]["identical"]
    ours, sb3 = identical["facts"]["pi_incubator"], identical["facts"]["sb3"]
    assert ours["num_parameters"] == sb3["num_parameters"]
    sizes = {"num_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1, "vec_env": "DummyVecEnv"}
    assert sizes.items() <= sb3.items()
    assert identical["config"]["network.normalize_observations"] is False
    assert list(identical["rounds"][0]) == ["pi_incubator", "sb3", "physics"]
    metrics = report["metrics"]
    ours, theirs = (metrics[f"identical: {name}"]["rounds"] for name in ("pi_incubator", "sb3"))
    expected = [a / b for a, b in zip(ours, theirs, strict=True)]
    assert metrics["identical: pi_incubator/sb3"]["rounds"] == expected
    assert "identical: pi_incubator/best peer" in metrics
    assert "ours is times this" in table


def test_our_settings_do_not_reach_the_peer() -> None:
    program = """
import os, sys
before = dict(os.environ)
import bench._worker, bench._loops.sb3
assert "envs_gpu" not in sys.modules and "torch" not in sys.modules
assert dict(os.environ) == before
import bench.train
from bench._machine import fresh_environment
assert fresh_environment().keys() - before.keys() <= {"PYTHONPATH"}
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "NPROC"))}
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_startup_is_measured_cold_and_warm(tmp_path: Path) -> None:
    file = tmp_path / "startup.json"
    task = ("--task", "cartpole_balance", "--num-envs", "2")
    done = bench("startup", *task, "--backend", "mujoco", "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    (measured,) = result["rounds"]["mujoco"]
    for process in (measured["cold"], measured["warm"]):
        stages = [process[f"{stage}_s"] for stage in ("imported", "built", "first_step", "second_step")]
        assert stages == sorted(stages)
        assert stages[0] > 0
    cold = result["metrics"]["mujoco: to the first step, cold"]
    assert (cold["median"], cold["better"]) == (measured["cold"]["first_step_s"], "lower")
    assert "cold s" in done.stdout


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["train", "--peer", "rllib"], "rllib"),
        (["train", "--peer", "none", "env.name=atn"], "did you mean 'ant'?"),
        (["train", "--rounds", "0"], "--rounds"),
        (["startup", "--task", "atn"], "did you mean 'ant'?"),
        (["startup", "--backend", "mujuco"], "did you mean mujoco?"),
        (["sim", "--task", "atn"], "did you mean 'ant'?"),
        (["sim", "--backend", "mujuco"], "did you mean 'mujoco'?"),
        (["sim", "--compiled", "--eager"], "--eager"),
        (["kernels", "--kernel", "gea"], "did you mean 'gae'?"),
        (["kernels", "--shape", "24"], "24x4096"),
        (["memory", "--config", "missing.yaml"], "missing.yaml"),
        (["sim", "--plot", "missing/sim.png"], "--plot"),
        (["startup", "--plot", "startup.svg"], "startup.svg"),
        (["compare", "missing.json", "missing.json"], "missing.json: cannot be read"),
        (["compare", "a.json", "b.json", "--fail-below", "95"], "--fail-below"),
        (["report", "missing.json"], "missing.json: cannot be read"),
        (["fly"], "fly"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], names: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        run(main, argv)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert names in err


def test_a_task_that_the_peer_lacks_is_named() -> None:
    pytest.importorskip("stable_baselines3", reason="the peer is an extra: pip install -e '.[peers]'")
    with pytest.raises(UserError, match="Gymnasium has no such task"):
        main(["train", "env.name=cartpole_balance"])


def test_a_peer_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[peers\]'"):
        main(["train"])


@pytest.mark.slow  # tests/test_memory.py compares the estimate with what a whole run takes
def test_memory_counts_the_whole_run(tmp_path: Path) -> None:
    config, file = tmp_path / "tiny.yaml", tmp_path / "memory.json"
    config.write_text("env: {name: cartpole_balance, num_envs: 4}\n")
    short = (
        "tracking.backend=none",
        "evaluation.num_episodes=1",
        "deployment.export=none",
        "evaluation.curve=false",
    )
    done = bench("memory", "--config", str(config), "--iterations", "2", "--json", str(file), *TINY, *short)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert 0.1 < result["metrics"]["memory: peak"]["median"] < 10  # torch alone takes more than the one
    assert result["processes"] >= 1
    assert result["settings"]["config"]["env.num_envs"] == 4
    assert "more --iterations" in result["not_measured"]["memory: growth"]


@pytest.mark.slow
def test_sim_measures_the_share_that_is_not_physics(tmp_path: Path) -> None:
    file = tmp_path / "sim.json"
    sizes = ("--num-envs", "4", "--seconds", "1", "--rounds", "2", "--eager")
    pairs = ("--task", "cartpole_balance", "--backend", "mujoco")
    done = bench("sim", *pairs, *sizes, "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    rounds = result["pairs"]["cartpole_balance on mujoco"]["rounds"]
    assert len(rounds) == 2
    for one in rounds:
        assert one["env"] >= 1
        assert one["steps"] % 10 == 0
    measured = {
        kind: result["metrics"][f"cartpole_balance on mujoco: {kind}"]
        for kind in ("env", "rollout", "not physics")
    }
    assert measured["env"]["rounds"] == [4 * one["steps"] / one["env"] for one in rounds]
    shares = [1 - one["physics"] / one["env"] for one in rounds]
    assert measured["not physics"]["median"] == pytest.approx(100 * median(shares))
    # Four cart-poles are nothing to simulate: almost all of a step is not physics, and less so in C alone.
    assert 0.5 < min(shares) < 1
    assert measured["rollout"]["median"] > measured["env"]["median"]
    assert "not physics" in done.stdout


def test_sim_states_why_a_pair_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "--task", "inverted_double_pendulum", "--backend", "mjx"]) in (0, None)
    assert "unsupported: MJX" in capsys.readouterr().out


def test_what_sim_measures_leaves_the_env_on_its_path() -> None:
    from bench._sim_pair import PairBench

    measured = PairBench("cartpole_balance", "mujoco", 4, "cpu", compiled=False)
    state = measured.env.state_dict()
    for _ in range(2):
        seconds = measured.block()
    assert seconds.keys() == {"env", "physics", "rollout"}
    observed = measured.env.obs["policy"].clone()
    measured.env.load_state_dict(state)
    for action in (*measured.actions, *measured.actions):
        measured.env.step(action)
    assert torch.equal(measured.env.obs["policy"], observed)
    # Rolled out from where the last block began, the other two are where the env is: nothing was restarted.
    end = torch.from_numpy(measured.rollout.path[:, -1])
    torch.testing.assert_close(end[:, 1 : 1 + 2], measured.env.physics.state.qpos, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_kernels_are_timed_beside_peers_that_agree(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    done = bench("kernels", "--kernel", "gae", "--shape", "5x9", "--rounds", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    (race,) = report["races"]
    assert race["left_out"] == {}
    assert {"pi_incubator", "copy", "torchrl", "stable-baselines3", "jax scan"} <= race["seconds"].keys()
    # Three of float32 and two of bool come in, two of float32 and three moments go out.
    assert race["bytes"] == 5 * 9 * (3 * 4 + 2 + 2 * 4) + 3 * 4
    metric = report["metrics"]["gae 5x9: pi_incubator"]
    assert metric["rounds"] == [1e9 * taken_s / 45 for taken_s in race["seconds"]["pi_incubator"]]
    assert "times copy" in done.stdout


@pytest.mark.slow
def test_a_kernel_that_changes_its_input_is_compared_by_what_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    line = ("--kernel", "sum_tree_update", "--shape", "5x9", "--rounds", "2", "--json", str(file))
    done = bench("kernels", *line)
    assert done.returncode == 0, done.stderr
    (race,) = json.loads(file.read_text())["races"]
    assert race["left_out"] == {}
    assert {"pi_incubator", "copy", "plain torch"} <= race["seconds"].keys()
    # A tree of 32 + 45 goes in and comes out; indices and priorities of 9 go in.
    assert race["bytes"] == 2 * (32 + 45) * 4 + 9 * (8 + 4)


def test_results_are_what_is_returned_and_then_what_was_changed() -> None:
    from bench._kernel_race import _start

    def make(own: dict[str, Any]) -> Any:
        return lambda: (own["x"].add_(1), lambda: [own["y"] + 2.0])[1]

    inputs = {"x": torch.zeros(2), "y": torch.zeros(2), "number": 3.0}
    _, results = _start(make, inputs)
    assert [x.tolist() for x in results] == [[2.0, 2.0], [1.0, 1.0]]
    assert inputs["x"].tolist() == [0.0, 0.0], "the next candidate starts from the same inputs"


@pytest.mark.parametrize(("kernel", "peer"), [(kernel, peer) for kernel in PEERS for peer in PEERS[kernel]])
def test_every_peer_computes_what_we_do(kernel: str, peer: str) -> None:
    import kernels
    from bench._kernel_race import _check, _kernel, _start

    inputs = consistent_inputs(kernels.get(kernel).inputs(5, 9))
    _, ours = _start(_kernel(kernels.get(kernel)), inputs)
    _, theirs = _start(PEERS[kernel][peer], inputs)
    assert theirs
    _check(theirs, ours)


def test_a_peer_that_computes_something_else_is_not_timed() -> None:
    from bench._kernel_race import _check

    right = [torch.arange(6.0).view(2, 3)]
    _check([right[0].flatten()], right)
    with pytest.raises(NotRun, match="differs by 2"):
        _check([right[0] + 1.0], right)
    with pytest.raises(NotRun, match="differs by nan"):
        _check([torch.full((2, 3), torch.nan)], right)


def test_all_runs_every_bench_and_names_what_failed(tmp_path, monkeypatch, capsys):
    calls = []

    def run(command, check):
        calls.append(command[3:])
        return subprocess.CompletedProcess(command, returncode=command[3] == "kernels")

    monkeypatch.setattr(everything.subprocess, "run", run)
    assert main(["all", "--out", str(tmp_path / "results")]) == 1
    assert "failed: kernels" in capsys.readouterr().err
    assert [call[0] for call in calls] == list(everything.ON_CPU)
    assert calls[1] == ["train", "--json", str(tmp_path / "results/train.json"), "--peer", "all"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no CUDA device"):
        main(["all", "--device", "cuda", "--out", str(tmp_path)])
    on_gpu = list(everything.commands("cuda"))
    assert {command[0] for _, command in on_gpu} == {"sim", "train", "kernels", "memory"}
    assert len({name for name, _ in on_gpu}) == len(on_gpu)
    assert not any("--json" in command for _, command in on_gpu)


def test_saves_measures_a_checkpoint_beside_training(tmp_path: Path) -> None:
    file = tmp_path / "saves.json"
    config = str(ROOT / "configs" / "ppo" / "cartpole_balance.yaml")
    command = ["saves", "--config", config, "--rounds", "2", "--json", str(file)]
    assert main([*command, "env.num_envs=4", "checkpoint.save_every=2", *TINY]) is None
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["saves: stall"]["median"] > 0
    assert metrics["saves: cost"]["min"] <= metrics["saves: cost"]["max"]
