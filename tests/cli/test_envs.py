"""pi-envs lists what there is, and its check reports what became of every pair."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from envs_gpu.tasks import TASKS
from envs_gpu.zoo import FAMILIES
from pi_incubator.cli import _pairs, envs
from pi_incubator.cli._main import run

SPEC = {"check": "spec", "status": "ok", "detail": "", "wall_s": 0.1}
SCRIPTS = {
    "sound": f"print('''{json.dumps({'begins': 'spec'})}\n{json.dumps(SPEC)}''')",
    "failing": f"print('''{json.dumps(SPEC | {'status': 'failed', 'detail': 'reward [x] is wrong'})}''')",
    "named": f"print('''{json.dumps(SPEC | {'check': 'drift', 'status': 'named', 'detail': 'known'})}''')",
    "crashing": f"import os; print('''{json.dumps({'begins': 'spec'})}''', flush=True); os.abort()",
    "raising": "raise RuntimeError('no such kernel')",
    "silent": "pass",
}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "170")


def ends(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        run(envs.main, argv)
    return int(ended.value.code or 0)


def pretend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the checking process run a script instead."""
    monkeypatch.setattr(_pairs, "worker_command", lambda outcome: [sys.executable, "-c", SCRIPTS[name]])


def test_list_shows_every_task_and_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(["list"]) == 0
    printed = capsys.readouterr().out
    for name in TASKS.names():
        assert f" {name} " in printed
    for name in FAMILIES.names():
        assert f"{name}/..." in printed
    (ant,) = (line for line in printed.splitlines() if " ant " in line)
    assert "policy 105" in ant
    assert " 8 " in ant
    assert " 20 " in ant


def test_list_takes_no_network_and_names_each_missing_robot_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A task whose robot is not here keeps its row; what is missing is said once, below the table."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.delenv("MENAGERIE_ROOT", raising=False)
    monkeypatch.setenv("MENAGERIE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert ends(["list"]) == 0
    printed = capsys.readouterr().out
    for robot in ("unitree_go1", "unitree_g1", "i2rt_yam"):
        assert printed.count(f"{robot} is not on this machine (downloaded at first use)") == 1
    (line,) = (line for line in printed.splitlines() if line.startswith("unitree_go1 is"))
    assert line.endswith("it is the robot of go1_getup, go1_velocity, go1_velocity_rough")
    (row,) = (line for line in printed.splitlines() if " go1_getup " in line and "│" in line)
    assert "mjx" in row
    assert "connect to the internet" not in printed


def test_robots_says_where_the_files_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MENAGERIE_ROOT", str(tmp_path))
    assert ends(["robots"]) == 0
    printed = capsys.readouterr().out
    assert "unitree_go1" in printed
    assert printed.count("not in MENAGERIE_ROOT") == 3
    monkeypatch.delenv("MENAGERIE_ROOT")
    monkeypatch.setenv("MENAGERIE_CACHE_DIR", str(tmp_path))
    assert ends(["robots"]) == 0
    printed = capsys.readouterr().out
    assert "downloaded at first use" in printed
    assert "half_cheetah" in printed


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["check", "atn"], "did you mean 'ant'?"),
        (["check", "ant", "--backend", "mujuco"], "did you mean 'mujoco'?"),
        (["check"], "--all"),
        (["check", "ant", "--jobs", "0"], "--jobs"),
        (["lst"], "lst"),
        (["replay", "missing.npz"], "missing.npz"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert names in printed.err


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("sound", 0, "1 pairs checked, 0 failed"),
        ("failing", 1, "reward [x] is wrong"),
        ("named", 0, "named ant on mujoco, drift: known"),
        ("crashing", 1, "crashed with SIGABRT"),
        ("raising", 1, "no such kernel"),
        ("silent", 1, "ended with 0: without a word"),
    ],
)
def test_what_the_checking_process_says_is_reported(
    name: str, code: int, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, name)
    assert ends(["check", "ant", "--backend", "mujoco"]) == code
    printed = capsys.readouterr()
    assert says in printed.out
    assert "1 of 1: ant on mujoco" in printed.err


def test_a_pair_that_hangs_is_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pairs, "PAIR_TIMEOUT_S", 1.0)
    monkeypatch.setattr(_pairs, "worker_command", lambda outcome: ["sleep", "60"])
    assert ends(["check", "ant", "--backend", "mujoco"]) == 1
    assert "SIGKILL" in capsys.readouterr().out


def test_an_unsupported_pair_states_its_reason_and_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "failing")
    file = tmp_path / "check.json"
    assert ends(["check", "inverted_double_pendulum", "--backend", "mjx", "--json", str(file)]) == 0
    assert "unsupported: MJX's" in capsys.readouterr().out
    (pair,) = json.loads(file.read_text())["pairs"]
    assert pair["reason"] == TASKS.get("inverted_double_pendulum").unsupported["mjx"]
    assert pair["findings"] == []


def test_a_real_pair_is_green(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "check.json"
    assert ends(["check", "inverted_pendulum", "--backend", "mujoco", "--json", str(file)]) == 0
    (pair,) = json.loads(file.read_text())["pairs"]
    assert [finding["status"] for finding in pair["findings"]] == ["ok"] * 8 + ["skipped"]
    assert "FAILED" not in capsys.readouterr().out


def test_replay_prints_the_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dump = tmp_path / "dump.npz"

    def report(path: Path) -> tuple[str, dict[str, dict[str, float]], str]:
        assert path == dump
        return "ant on warp", {"-1": {"time s": 0.25}, "0": {"time s": 0.3}}, "breaks in C MuJoCo too"

    stand_in = types.ModuleType("envs_gpu.replay")
    stand_in.report = report  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "envs_gpu.replay", stand_in)
    assert ends(["replay", str(dump)]) == 0
    printed = capsys.readouterr().out
    assert "ant on warp" in printed
    assert "0.250" in printed
    assert printed.strip().endswith("breaks in C MuJoCo too")
