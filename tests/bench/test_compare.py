"""`pi-bench compare` fails where something became worse, and refuses what says nothing."""

from __future__ import annotations

import argparse
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import compare
from bench._result import make_metric, make_result, read_result
from pi_incubator.errors import UserError

Result = dict[str, Any]


def scaled(result: Result, factor: float, *names: str) -> Result:
    """`result` with every number of the named metrics, or of all, times `factor`."""
    other = copy.deepcopy(result)
    for name in names or other["metrics"]:
        metric = other["metrics"][name]
        for key in ("median", "min", "max"):
            metric[key] *= factor
        metric["rounds"] = [value * factor for value in metric["rounds"]]
    return other


def exit_code(folder: Path, a: Result, b: Result, *argv: str) -> int:
    files = [folder / "a.json", folder / "b.json"]
    for file, one in zip(files, (a, b), strict=True):
        file.write_text(json.dumps(one))
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.main(parser.parse_args([*map(str, files), *argv]))


def test_a_throughput_regression_fails(tmp_path: Path, result: Result, capsys: Any) -> None:
    assert exit_code(tmp_path, result, scaled(result, 0.8, "ant: env")) == 1
    said = capsys.readouterr().out
    assert "1 of 3 below 0.95: ant: env" in said
    assert "0.800" in said


def test_the_same_and_the_better_pass(tmp_path: Path, result: Result) -> None:
    assert exit_code(tmp_path, result, result) == 0
    assert exit_code(tmp_path, result, scaled(result, 3.0, "ant: env")) == 0


def test_where_less_is_better_the_ratio_is_turned(tmp_path: Path, result: Result) -> None:
    slower, faster = scaled(result, 2.0, "start"), scaled(result, 0.5, "start")
    assert compare.compare(result, slower, 0.95)["start"].ratio == 0.5
    assert compare.compare(result, faster, 0.95)["start"].ratio == 2.0
    assert exit_code(tmp_path, result, slower) == 1
    assert exit_code(tmp_path, result, faster) == 0


def test_what_is_told_is_not_judged(tmp_path: Path, result: Result, capsys: Any) -> None:
    assert exit_code(tmp_path, result, scaled(result, 0.1, "ant: rollout")) == 0
    assert "not judged" in capsys.readouterr().out


def test_the_limit_can_be_moved(tmp_path: Path, result: Result) -> None:
    worse = scaled(result, 0.8, "ant: env")
    assert exit_code(tmp_path, result, worse, "--fail-below", "0.75") == 0
    assert exit_code(tmp_path, result, scaled(result, 0.97, "ant: env"), "--fail-below", "0.99") == 1


def one_metric(rounds: list[float]) -> Result:
    return make_result("sim", {}, {"env": make_metric(rounds, "env steps/s")})


@pytest.mark.parametrize(
    ("a", "b", "is_noise"),
    [
        ([80.0, 100.0, 120.0], [75.0, 90.0, 110.0], True),
        ([99.0, 100.0, 101.0], [89.0, 90.0, 91.0], False),
        ([10.0, 100.0, 101.0], [89.0, 90.0, 91.0], False),  # a wild round of one side excuses nothing
        ([100.0, 100.0, 40.0], [50.0, 50.0, 105.0], False),  # nor do two, of both sides
        ([100.0], [90.0], False),  # one round has no spread
        ([100.0, 100.0], [0.0, 100.0, 0.0], False),  # it stopped: there is no ratio, and yet it is worse
    ],
)
def test_what_lies_within_the_spread_is_noise(
    tmp_path: Path, a: list[float], b: list[float], is_noise: bool
) -> None:
    first, second = one_metric(a), one_metric(b)
    assert compare.compare(first, second, 0.95)["env"].is_noise is is_noise
    assert exit_code(tmp_path, first, second) == (0 if is_noise else 1)


def test_numbers_without_a_ratio_are_not_judged(tmp_path: Path) -> None:
    assert exit_code(tmp_path, one_metric([0.0]), one_metric([-1.0])) == 0


def test_what_only_one_side_measured_is_named(tmp_path: Path, result: Result, capsys: Any) -> None:
    less = copy.deepcopy(result)
    del less["metrics"]["start"]
    assert exit_code(tmp_path, result, less) == 1
    said = capsys.readouterr().out
    assert "only in A: start" in said
    assert "judged in A and not measured in B: start" in said
    assert exit_code(tmp_path, less, result) == 0


def changed(result: Result, **entries: Any) -> Result:
    return copy.deepcopy(result) | entries


def test_different_hardware_needs_a_word(tmp_path: Path, result: Result, capsys: Any) -> None:
    other = changed(result, machine=result["machine"] | {"cpu": "Z80", "gpus": ["H100"]})
    with pytest.raises(UserError, match=r"hardware differs: cpu: A has .*, B has 'Z80', gpus") as caught:
        exit_code(tmp_path, result, other)
    assert "--allow-different-hardware" in str(caught.value)
    assert exit_code(tmp_path, result, other, "--allow-different-hardware") == 0
    assert "Z80" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(tmp_path: Path, result: Result) -> None:
    settings = {"task": "hopper", "num_envs": {"mujoco": 8}}
    unit = copy.deepcopy(result)
    unit["metrics"]["start"]["unit"] = "ms"
    for other, message in (
        (changed(result, bench="kernels"), "bench = 'sim' and 'kernels'"),
        (changed(result, settings=settings), "task: A has 'ant', B has 'hopper', num_envs.mujoco: A has 64"),
        (changed(result, metrics={}), "no metric in common"),
        (unit, "start: unit: A has 's', B has 'ms'"),
    ):
        with pytest.raises(UserError, match=message):
            exit_code(tmp_path, result, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "schema is missing"),
        ('{"pairs": {}}', "schema is missing"),
        ('{"schema": 99}', "schema = 99"),
        ('{"schema": 1}', "bench is missing"),
    ],
)
def test_what_is_no_result_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "no.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_result(file)
    assert "no.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["unit", "better", "median", "rounds"])
def test_a_metric_with_a_hole_is_named(tmp_path: Path, result: Result, key: str) -> None:
    del result["metrics"]["start"][key]
    file = tmp_path / "hole.json"
    file.write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"metrics\.start"):
        read_result(file)


@pytest.mark.parametrize("rounds", [[], ["q", "w"], [None], 3])
def test_rounds_that_are_no_numbers_are_named(tmp_path: Path, result: Result, rounds: Any) -> None:
    name, metric = next(iter(result["metrics"].items()))
    metric["rounds"] = rounds
    (tmp_path / "a.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=rf"metrics\.{re.escape(name)} lacks rounds"):
        read_result(tmp_path / "a.json")


def test_what_was_not_finite_is_not_measured(tmp_path: Path, result: Result) -> None:
    result["metrics"]["start"] |= {"median": None, "max": None}  # so write_json writes NaN
    file = tmp_path / "nan.json"
    file.write_text(json.dumps(result))
    read = read_result(file)
    assert "start" not in read["metrics"]
    assert read["not_measured"] == {"start": "was not finite"}


@pytest.mark.slow
def test_a_measurement_at_half_its_speed_exits_with_1(tmp_path: Path, run_bench: Any) -> None:
    file, half, picture = tmp_path / "sim.json", tmp_path / "half.json", tmp_path / "sim.png"
    sizes = ("--num-envs", "4", "--seconds", "1", "--rounds", "2", "--eager")
    pairs = ("--task", "cartpole_balance", "--backend", "mujoco")
    done = run_bench("sim", *pairs, *sizes, "--json", file, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    half.write_text(json.dumps(scaled(json.loads(file.read_text()), 0.5)))
    same = run_bench("compare", file, file)
    assert same.returncode == 0, same.stderr
    worse = run_bench("compare", file, half)
    assert worse.returncode == 1, worse.stderr
    assert "cartpole_balance on mujoco: env" in worse.stdout
    assert "REGRESSION" in worse.stdout
