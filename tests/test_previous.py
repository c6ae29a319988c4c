"""A new run in an old run's folder: the old one leaves as a whole, and is kept until the new one is saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pi_incubator import checkpoint
from pi_incubator.checkpoint import Part
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.previous import set_aside
from pi_incubator.run_folder import RunFolder, begin, check_resume, starting


def make_config(output_dir: Path, **checkpoint_settings: Any) -> ExperimentConfig:
    experiment = {"name": "run", "output_dir": str(output_dir)}
    return ExperimentConfig.model_validate({"experiment": experiment, "checkpoint": checkpoint_settings})


def save(folder: RunFolder, iteration: int, cfg: ExperimentConfig) -> None:
    checkpoint.save(folder, iteration, iteration, {"policy": Part(torch.nn.Linear(1, 1))}, cfg, keep=3)


def leave_run(output_dir: Path, link: Path | None = None) -> RunFolder:
    """A folder with everything that a run leaves, and a file of the user; `checkpoints` may be a link."""
    cfg = make_config(output_dir)
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True)
    if link:
        link.mkdir()
        folder.checkpoints.symlink_to(link, target_is_directory=True)
    begin(cfg, folder)
    save(folder, 1, cfg)
    for path in folder.owned:
        if not path.exists() and not path.suffix and path.name != "mlflow_run_id":
            path.mkdir()
            (path / "of_the_old_run").touch()
        elif not path.exists():
            path.write_text("of the old run")
    (folder.path / "notes.txt").write_text("mine")
    return folder


def listing(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("linked", [False, True], ids=["a folder", "a link"])
def test_everything_of_the_old_run_leaves_together(tmp_path: Path, linked: bool) -> None:
    """What the user put there stays, and the old run can be opened where it is now."""
    folder = leave_run(tmp_path / "runs", tmp_path / "disk" if linked else None)
    before = listing(folder.path)
    checkpoints = listing(folder.checkpoints)
    assert begin(make_config(tmp_path / "runs", resume="never"), folder) is False
    assert {path.name for path in folder.path.iterdir()} - {"checkpoints"} == {
        *("config.yaml", "inputs.json", "notes.txt", "previous")
    }
    assert not folder.saved()
    aside = folder.previous / "001"
    kept = listing(aside) | {f"checkpoints/{name}": text for name, text in checkpoints.items()}
    assert kept == {name: text for name, text in before.items() if name != "notes.txt"} | {
        f"checkpoints/{name}": text for name, text in checkpoints.items()
    }
    assert checkpoint.load_policy(aside, torch.nn.Linear(1, 1)).iteration == 1


def test_a_link_to_another_disk_stays_one(tmp_path: Path) -> None:
    """New checkpoints go to that disk, and what is deleted later is deleted there too."""
    folder = leave_run(tmp_path / "runs", tmp_path / "disk")
    never = make_config(tmp_path / "runs", resume="never")
    begin(never, folder)
    assert folder.checkpoints.is_symlink()
    save(folder, 5, never)
    assert [path.name for path in folder.saved()] == ["iter_00000005"]
    assert (tmp_path / "disk" / "iter_00000005").is_dir()
    begin(never, folder)
    save(folder, 6, never)
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["iter_00000006", "previous_002"]
    assert [path.name for path in folder.previous.iterdir()] == ["002"]


def test_a_link_that_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    """A disk that is not mounted is not a run without checkpoints."""
    folder = leave_run(tmp_path / "runs", tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk")
    with pytest.raises(UserError, match=r"checkpoints: is a link to .*disk, which is not there; mount"):
        check_resume(make_config(tmp_path / "runs"), folder)


def test_the_old_run_is_kept_until_the_new_one_has_a_checkpoint(tmp_path: Path) -> None:
    """Starts that came to nothing do not push a trained run out; a newer trained run does."""
    folder = leave_run(tmp_path / "runs")
    never = make_config(tmp_path / "runs", resume="never")
    for _ in range(3):  # ends before its first checkpoint
        begin(never, folder)
        folder.metrics.write_text("{}\n")
    assert sorted(path.name for path in folder.previous.iterdir()) == ["001", "002", "003"]
    save(folder, 7, never)
    assert [path.name for path in folder.previous.iterdir()] == ["001"]
    begin(never, folder)
    assert sorted(path.name for path in folder.previous.iterdir()) == ["001", "002"]
    save(folder, 8, never)
    assert [path.name for path in folder.previous.iterdir()] == ["002"]


def test_results_without_checkpoints_are_not_deleted_either(tmp_path: Path) -> None:
    """Whoever deletes the checkpoints to save room keeps the policy when the run is started again."""
    folder = leave_run(tmp_path / "runs")
    shutil.rmtree(folder.checkpoints)
    cfg = make_config(tmp_path / "runs")
    begin(cfg, folder)
    save(folder, 1, cfg)
    assert (folder.previous / "001" / "policy.onnx").read_text() == "of the old run"


@pytest.mark.parametrize("linked", [False, True], ids=["a folder", "a link"])
@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_a_start_that_fails_changes_nothing(
    tmp_path: Path, linked: bool, resume: str, error: type[BaseException]
) -> None:
    """Not one byte, whether the run should continue or start anew, before its first iteration."""
    folder = leave_run(tmp_path / "runs", tmp_path / "disk" if linked else None)
    before = listing(tmp_path)

    def fail() -> None:
        with starting(make_config(tmp_path / "runs", resume=resume, keep=9), folder):
            folder.mlflow_run_id.write_text("of the new run")
            raise error

    for _ in range(2):
        with pytest.raises(error):
            fail()
        assert listing(tmp_path) == before
    assert folder.checkpoints.is_symlink() is linked


@pytest.mark.parametrize("linked", [False, True], ids=["a folder", "a link"])
def test_a_kill_while_the_old_run_is_moved_is_undone_at_the_next_start(
    tmp_path: Path, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a run in each of two places would be no run."""
    folder = leave_run(tmp_path / "runs", tmp_path / "disk" if linked else None)
    before = listing(tmp_path)
    rename, calls = Path.rename, iter(range(100))

    def dying(path: Path, target: Path) -> Path:
        if next(calls) == 4:
            raise SystemExit
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(SystemExit):
        set_aside(folder)
    monkeypatch.undo()
    assert listing(tmp_path) != before
    assert begin(make_config(tmp_path / "runs"), folder) is True
    assert listing(tmp_path).keys() == before.keys()
    assert not folder.previous.exists()


def test_a_continuation_that_fails_leaves_no_mlflow_run_behind(tmp_path: Path) -> None:
    """A run that was not tracked before is not tracked because of it."""
    folder = leave_run(tmp_path / "runs")
    folder.mlflow_run_id.unlink()

    def fail() -> None:
        with starting(make_config(tmp_path / "runs"), folder) as start:
            assert start.resumes
            folder.mlflow_run_id.write_text("of the failed continuation")
            raise UserError

    with pytest.raises(UserError):
        fail()
    assert not folder.mlflow_run_id.exists()


def test_an_old_run_that_cannot_be_moved_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = leave_run(tmp_path / "runs")
    before = listing(tmp_path)
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path.name == "curve.png" and path.parent == folder.path:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(UserError, match=r"an older run there cannot be moved aside .*No space left"):
        begin(make_config(tmp_path / "runs", resume="never"), folder)
    assert listing(tmp_path) == before
