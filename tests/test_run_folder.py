"""The run folder: its lock, its errors, and what a run may continue."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.run_folder import RunFolder, begin, check_resume, keep_num_envs, open_run

HOLD_THE_LOCK = """
import sys
from pi_incubator.run_folder import RunFolder
with RunFolder(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def make_config(output_dir: Path, **settings: Any) -> ExperimentConfig:
    """A config with `section__key=value` settings."""
    values: dict[str, dict[str, Any]] = {"experiment": {"name": "run", "output_dir": str(output_dir)}}
    for name, value in settings.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    return ExperimentConfig.model_validate(values)


def leave_checkpoint(cfg: ExperimentConfig) -> RunFolder:
    """A folder as a run of `cfg` leaves it."""
    folder = RunFolder(cfg)
    with folder:
        begin(cfg, folder)
        (folder.checkpoints / "iter_00000007").mkdir(parents=True)
        folder.metrics.write_text("{}\n")
    return folder


def test_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    folder = RunFolder(make_config(tmp_path))
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError) as refused, folder:
            pass
        holder.kill()
        holder.wait()
    message = str(refused.value)
    assert f"pid {holder.pid} " in message
    assert "experiment.name" in message
    assert "\n" not in message
    with folder:  # nothing stale is left
        pass


def test_lock_ends_with_the_context(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    with RunFolder(cfg), pytest.raises(ConfigError), RunFolder(cfg):
        pass
    with RunFolder(cfg):
        pass


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = RunFolder(make_config(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"experiment\.output_dir") as error, folder:
        pass
    assert "\n" not in str(error.value)


def test_import_is_light() -> None:
    script = "import sys, pi_incubator.run_folder; print({'torch', 'mujoco', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_begin_writes_the_resolved_config(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, algorithm__lr=1e-3)
    with RunFolder(cfg) as folder:
        assert begin(cfg, folder) is False
    assert load_config(folder.config) == cfg


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"training__total_steps": 10_000_000},
        {"training__log_every": 3},
        {"compute__device": "cpu"},
        {"tracking__backend": "none"},
        {"checkpoint__keep": 9, "checkpoint__resume": "must"},
        {"evaluation__num_episodes": 5, "deployment__export": "none"},
        {"env__backend": "mujoco"},  # what auto chose is checked against the checkpoint itself
    ],
)
def test_run_continues(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = leave_checkpoint(make_config(tmp_path))
    cfg = make_config(tmp_path, **changed)
    assert begin(cfg, folder) is True
    assert folder.saved()
    assert folder.metrics.exists()
    assert load_config(folder.config) == cfg


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ({}, {"algorithm__lr": 0.01}, ("algorithm.lr", "0.0003", "0.01")),
        ({}, {"env__num_envs": 128}, ("env.num_envs", "64", "128")),
        ({}, {"experiment__seed": 5}, ("experiment.seed", "1", "5")),
        ({}, {"network__hidden_sizes": [32]}, ("network.hidden_sizes", "[64, 64]", "[32]")),
        ({"env__backend": "mujoco"}, {"env__backend": "warp"}, ("env.backend", "mujoco", "warp")),
    ],
)
def test_run_with_other_settings_is_refused(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any], shown: tuple[str, ...]
) -> None:
    folder = leave_checkpoint(make_config(tmp_path, **old))
    before = folder.config.read_text()
    with pytest.raises(ConfigError) as error:
        begin(make_config(tmp_path, **new), folder)
    message = str(error.value)
    assert all(part in message for part in (*shown, "experiment.name", "checkpoint.resume=never"))
    assert "\n" not in message
    assert folder.saved()
    assert folder.config.read_text() == before


def test_never_starts_anew_whatever_is_there(tmp_path: Path) -> None:
    folder = leave_checkpoint(make_config(tmp_path))
    assert begin(make_config(tmp_path, checkpoint__resume="never", algorithm__lr=0.01), folder) is False
    assert not folder.saved()
    assert not folder.metrics.exists()


def test_must_needs_a_checkpoint(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, checkpoint__resume="must")
    with pytest.raises(ConfigError, match="no checkpoint"):
        check_resume(cfg, RunFolder(cfg))


def test_run_that_left_no_checkpoint_does_not_bind_the_next(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    begun = RunFolder(cfg)
    with begun:
        begin(cfg, begun)
    assert check_resume(make_config(tmp_path, algorithm__lr=0.01), begun) is False


def test_saved_settings_carry_their_format(tmp_path: Path) -> None:
    """A later version can tell which one wrote a run; a file of a later one is refused."""
    cfg = make_config(tmp_path)
    with RunFolder(cfg) as folder:
        begin(cfg, folder)
    assert folder.config.read_text().startswith("format: 2\n")
    folder.config.write_text(folder.config.read_text().replace("format: 2", "format: 3"))
    with pytest.raises(ConfigError, match=r"config\.yaml:1: format = 3: this version reads 2; use "):
        load_config(folder.config)


OLD_SETTINGS = "env: {name: ant}\ndistillation:\n  teachers: []\n"


@pytest.mark.parametrize("text", [OLD_SETTINGS, "env: {name: ant}\n"], ids=["other sections", "the same"])
def test_a_run_of_version_0_1_0_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    """Opening or continuing such a run names the version that wrote it, whatever its settings are."""
    cfg = make_config(tmp_path)
    folder = leave_checkpoint(cfg)
    folder.config.write_text(text)
    expected = (
        f"{folder.config}: was written by pi_incubator 0.1.0, whose settings this version does not read; "
        "install that version to use it, or train again"
    )
    auto = make_config(tmp_path, env__num_envs="auto")
    for refuse in (
        lambda: open_run(str(folder.path)),
        lambda: check_resume(cfg, folder),
        lambda: begin(cfg, folder),
        lambda: keep_num_envs(auto, folder),
    ):
        with pytest.raises(ConfigError) as error:
            refuse()
        assert str(error.value) == expected
    assert folder.saved()
    assert folder.config.read_text() == text


def test_a_run_of_version_0_1_0_can_be_replaced(tmp_path: Path) -> None:
    """A run that starts anew deletes what the old version left."""
    folder = leave_checkpoint(make_config(tmp_path))
    folder.config.write_text(OLD_SETTINGS)
    assert begin(make_config(tmp_path, checkpoint__resume="never"), folder) is False
    assert not folder.saved()
