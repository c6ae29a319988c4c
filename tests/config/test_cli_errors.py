"""Commands report a user's mistake as one line and exit 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pi_incubator.cli._main import run
from pi_incubator.errors import UserError

ROOT = Path(__file__).parents[2]
COMMAND = """
from pi_incubator.cli._main import run
from pi_incubator.config import load_config
run(lambda argv: print(load_config(argv[0], argv[1:]).algorithm.lr))
"""


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", COMMAND, *argv]
    return subprocess.run(line, capture_output=True, text=True, timeout=30, cwd=ROOT)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("algorithm:\n  lr: -1\n")
    done = command(str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        f"error: {path}:2: algorithm.lr = -1: must be greater than 0; set a positive"
    )
    assert done.stderr.count("\n") == 1


def test_a_good_command_exits_0(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("{}")
    done = command(str(path), "algorithm.lr=1e-3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.001\n", "")


@pytest.mark.parametrize(("result", "code"), [(None, None), (0, 0), (3, 3)])
def test_the_exit_code_is_what_main_returns(result: int | None, code: int | None) -> None:
    with pytest.raises(SystemExit) as caught:
        run(lambda argv: result, [])
    assert caught.value.code == code


def test_arguments_are_passed_on() -> None:
    seen: list[list[str]] = []
    with pytest.raises(SystemExit):
        run(seen.append, ["a", "b"])
    assert seen == [["a", "b"]]


def test_messages_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise UserError("two\nlines")

    with pytest.raises(SystemExit) as caught:
        run(main, [])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: two lines\n"


def test_an_interrupt_exits_130() -> None:
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run(main, [])
    assert caught.value.code == 130


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda argv: 1 // 0, [])
