"""`pi-bench bridge`: what crosses has one address on both sides, and the cost is that of paired turns."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import pytest

from bench import bridge, cli
from bench._result import read_result
from pi_incubator.errors import UserError


@pytest.mark.slow
def test_both_ways_are_measured_and_nothing_is_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bridge.json"
    sizes = ["--num-envs", "2", "--rounds", "3", "--steps", "20", "--device", "cpu"]
    cli.main(["bridge", *sizes, "--json", str(file)])
    result = read_result(file)
    assert result["bench"] == "bridge"
    assert result["shared_pointers"] == {"torch -> JAX": True, "JAX -> torch": True}
    assert result["settings"] == {"task": "inverted_pendulum", "num_envs": 2, "device": "cpu"}
    assert len(result["metrics"]) == 2
    for name, metric in result["metrics"].items():
        assert (metric["unit"], len(metric["rounds"])) == ("us/step", 3)
        assert metric["better"] == ("lower" if bridge.OURS in name else "")
        assert metric["median"] == median(metric["rounds"])
    assert "us/step" in capsys.readouterr().out


def test_the_cost_is_the_difference_of_paired_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {bridge.OURS: 5e-6, "bare": 2e-6, bridge.PEER: 9e-6}
    ways = {name: (lambda taken_s=taken_s: taken_s) for name, taken_s in seconds.items()}
    monkeypatch.setattr(bridge, "_ways", lambda physics: ways)
    monkeypatch.setattr(bridge, "_timed", lambda step: step())
    measured = bridge.measure(None, 2, 3)  # type: ignore[arg-type]
    assert measured == {bridge.OURS: pytest.approx([3.0, 3.0]), bridge.PEER: pytest.approx([7.0, 7.0])}


def test_an_unknown_task_is_refused() -> None:
    arguments = argparse.Namespace(task="atn", num_envs=1, device="cpu")
    with pytest.raises(UserError, match="did you mean 'ant'"):
        bridge._physics(arguments)
