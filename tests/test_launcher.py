"""What a launcher says in environment variables is checked, and a mistake in it is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pi_incubator.errors import UserError
from pi_incubator.launcher import Launch, launch_of_environment

ROOT = Path(__file__).parents[1]
WHOLE = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_process() -> None:
    """No variable, one process."""
    assert launch_of_environment() == Launch(rank=0, world_size=1, local_rank=0, local_world_size=1)


def test_what_torchrun_says_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four numbers."""
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert launch_of_environment() == Launch(rank=3, world_size=4, local_rank=1, local_world_size=2)


BAD = [(name, value) for name in WHOLE for value in ("abc", "", "-1", "1.5", "9" * 40, "²", None)]
# An address is any text; a missing number of processes is one process, of which rank 3 cannot be.
BAD = [(n, v) for n, v in BAD if n != "MASTER_ADDR" or not v]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_mistake_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    """Text, fractions, numbers that do not fit and missing ones are one line with the variable and a fix."""
    for other, good in WHOLE.items():
        monkeypatch.setenv(other, good)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^environment variable \w+") as caught:
        launch_of_environment()
    named = "RANK" if (name, value) == ("WORLD_SIZE", None) else name
    assert str(caught.value).startswith(f"environment variable {named}")
    assert str(caught.value).endswith("start the processes with torchrun, or unset it")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_the_command_ends_with_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, exit code 2, before anything is written."""
    monkeypatch.setenv(name, "abc")
    line = [sys.executable, str(ROOT / "train_ppo.py"), "--config", "configs/ppo/cartpole_balance.yaml"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: environment variable {name} = 'abc': must be ")
    assert done.stderr.count("\n") == 1
