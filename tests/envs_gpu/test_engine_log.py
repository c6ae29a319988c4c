"""MuJoCo's warnings: one line for each kind with a count, from every thread, and its file where we say."""

import logging

import mujoco
import numpy as np
import pytest
from mujoco.batch import Batch

from envs_gpu.engine_log import FILE, EngineLog
from tests.mjcf import EXPLODES


def explode(num_worlds=64):
    """Every world warns once."""
    batch = Batch(mujoco.MjModel.from_xml_string(EXPLODES), num_worlds, 2)
    batch.bind("qvel")[:] = np.linspace(1e9, 1e11, num_worlds)[:, None]
    batch.step(None, 2)
    return batch.warning[..., 1].sum()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The working directory, in which MuJoCo would write."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd"


def test_equal_warnings_are_one_line_with_a_count(tmp_path, elsewhere, caplog):
    with EngineLog(tmp_path) as engine_log:
        count = explode()
    assert sum(engine_log.counts.values()) == count >= 64
    repeated = [warning for warning, number in engine_log.counts.items() if number > 1]
    lines = (tmp_path / FILE).read_text().splitlines()
    assert len(lines) == len(engine_log.counts) + len(repeated) <= 6
    assert all(line.startswith("WARNING ") for line in lines)
    assert any(
        f"{number:,} times in all: " in line for line in lines for number in engine_log.counts.values()
    )
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == len(lines)
    assert any(
        warning.endswith("DOF #. The simulation is unstable. Time = #.") for warning in engine_log.counts
    )
    assert not list(elsewhere.iterdir())


def test_without_a_folder_nothing_is_written(tmp_path, elsewhere):
    with EngineLog(None) as engine_log:
        explode(2)
    assert engine_log.counts
    assert not list(elsewhere.iterdir())


def test_a_run_that_continues_appends(tmp_path):
    sizes = []
    for _ in range(2):
        with EngineLog(tmp_path):
            explode(1)
        sizes.append(len((tmp_path / FILE).read_text().splitlines()))
    assert sizes[1] == 2 * sizes[0] > 0


def test_what_was_set_before_is_set_again(tmp_path):
    heard, before = [], mujoco.MjLogConfig.get().logfile
    mujoco.set_mju_user_warning(heard.append)
    try:
        with EngineLog(tmp_path):
            assert mujoco.MjLogConfig.get().logfile == str(tmp_path / FILE)
            explode(1)
        assert not heard
        explode(1)
        assert heard
        assert mujoco.MjLogConfig.get().logfile == before
    finally:
        mujoco.set_mju_user_warning(None)


def test_a_full_disk_does_not_stop_the_physics(tmp_path, caplog):
    """Nor a folder that is gone: the warning is still told."""
    with EngineLog(tmp_path / "gone") as engine_log:
        explode(1)
    assert engine_log.counts
    assert "cannot be written" in caplog.text
