"""Checkpoints of several ranks: what each has for itself comes back to it, and rank 0 alone has files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pi_incubator import checkpoint, checkpoint_files
from pi_incubator.checkpoint import Part
from pi_incubator.config import ExperimentConfig
from pi_incubator.distributed import Distributed
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder

CONFIG = ExperimentConfig()


class Number:
    """A part that holds one number."""

    def __init__(self, value: float) -> None:
        self.x = torch.tensor(value)

    def state_dict(self) -> dict[str, Tensor]:
        return {"x": self.x}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.x = state["x"]


class Rank(Distributed):
    """One of two ranks; what they exchange is kept in a list instead of sent."""

    def __init__(self, rank: int, mail: list[Any]) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "mail", mail)

    def gather(self, value: Any) -> list[Any]:
        if self.rank:
            self.mail.append(value)
            return []
        return [value, self.mail.pop(0)]

    def broadcast(self, value: Any) -> Any:
        if self.rank:
            return self.mail.pop(0)
        self.mail.append(value)
        return value

    def scatter(self, values: Any) -> Any:
        if self.rank:
            return self.mail.pop(0)
        self.mail.append(values[1])
        return values[0]


def parts_of(rank: int, start: float = 0.0) -> dict[str, Part]:
    """A common part, one of each rank that the newest checkpoint keeps, and one that nobody saves."""
    return {
        "policy": Part(Number(start + 1.0)),
        "env": Part(Number(start + 10.0 + rank), per_rank=True),
        "replay": Part(Number(start + 20.0 + rank), saved="last", per_rank=True),
        "scratch": Part(Number(start + 30.0 + rank), saved="never", per_rank=True),
    }


def saved_by_two(folder: RunFolder, *iterations: int) -> None:
    for iteration in iterations:
        mail: list[Any] = []
        path = checkpoint.save(folder, iteration, iteration * 10, parts_of(1), CONFIG, 3, Rank(1, mail))
        assert not path.exists()  # rank 1 writes nothing, and yet knows the place
        assert (
            checkpoint.save(folder, iteration, iteration * 10, parts_of(0), CONFIG, 3, Rank(0, mail)) == path
        )
        assert path.is_dir()
        assert mail == []


def values(parts: dict[str, Part]) -> dict[str, float]:
    return {name: part.value.x.item() for name, part in parts.items()}


def test_each_rank_gets_back_its_own(tmp_path):
    """The common part on both, its own on each, and what is never saved stays."""
    folder, mail = RunFolder(tmp_path / "run"), []
    saved_by_two(folder, 4)
    ours, theirs = parts_of(0, 100.0), parts_of(1, 100.0)
    assert checkpoint.restore(folder, ours, Rank(0, mail)) == 5
    assert checkpoint.restore(RunFolder(tmp_path / "nowhere"), theirs, Rank(1, mail)) == 5
    assert values(ours) == {"policy": 1.0, "env": 10.0, "replay": 20.0, "scratch": 130.0}
    assert values(theirs) == {"policy": 1.0, "env": 11.0, "replay": 21.0, "scratch": 131.0}


def test_files_say_whose_they_are(tmp_path):
    """Further ranks have files of their own; an older checkpoint loses the large ones of all ranks."""
    folder = RunFolder(tmp_path / "run")
    saved_by_two(folder, 1, 2)
    always = {"policy", "env", "env.rank1", "random", "random.rank1"}
    old, new = [{file.stem for file in path.glob("*.safetensors")} for path in folder.saved()]
    assert old == always
    assert new == always | {"replay", "replay.rank1"}
    found = checkpoint_files.latest(folder)
    assert found is not None
    assert found.world_size == 2
    assert set(found.only_newest) == {"replay.safetensors", "replay.rank1.safetensors"}
    assert found.progress == {"iteration": 2, "env_steps": 20}
    assert found.run == folder.path
    (folder.saved()[-1] / "env.rank1.safetensors").unlink()
    found = checkpoint_files.latest(folder)
    assert found is not None
    assert found.iteration == 1


def test_another_number_of_ranks_is_refused_in_one_line(tmp_path):
    """What one rank had for itself is nobody's when there is one more or less."""
    folder = RunFolder(tmp_path / "run")
    saved_by_two(folder, 1)
    with pytest.raises(UserError, match="was written by 2 processes, and now there are 1") as error:
        checkpoint.restore(folder, parts_of(0))
    assert "\n" not in str(error.value)


def test_a_leftover_of_a_kill_is_no_part_of_the_next_save(tmp_path):
    """A file in the folder of a save that was killed does not get into the checkpoint."""
    folder = RunFolder(tmp_path / "run")
    partial = folder.checkpoints / ".iter_00000003.partial"
    partial.mkdir(parents=True)
    (partial / "old.safetensors").write_bytes(b"half")
    path = checkpoint.save(folder, 3, 30, {"policy": Part(Number(1.0))}, CONFIG, keep=1)
    assert {file.name for file in path.iterdir()} == {
        "policy.safetensors",
        "random.safetensors",
        "manifest.json",
    }
    assert [file.name for file in folder.checkpoints.iterdir()] == [path.name]


def test_older_ones_that_cannot_be_deleted_cost_a_sentence(tmp_path, monkeypatch, caplog):
    """The checkpoint is there; the disk is fuller than it should be."""

    def fail(*arguments: object) -> None:
        raise OSError("busy")

    monkeypatch.setattr(checkpoint, "prune", fail)
    folder = RunFolder(tmp_path / "run")
    checkpoint.save(folder, 3, 30, {"policy": Part(Number(1.0))}, CONFIG, keep=1)
    assert checkpoint.next_iteration(folder) == 4
    assert "cannot be deleted (busy)" in caplog.text


def test_who_saves_beside_training_knows_whether_it_failed(tmp_path):
    """False before, after a good save, and after the failure has been told."""
    folder = RunFolder(tmp_path / "run")
    saver = checkpoint.BackgroundSaver(folder, {"policy": Part(Number(1.0))}, CONFIG)
    assert not saver.has_failed
    saver.save(1, 10)
    saver.wait()
    assert not saver.has_failed
    folder.checkpoints.rename(folder.path / "away")
    folder.checkpoints.touch()
    saver.save(2, 20)
    deadline_s = time.monotonic() + 30.0
    while not saver.has_failed:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    with pytest.raises(UserError, match="cannot be written"):
        saver.wait()
    assert not saver.has_failed
    saver.close()


def test_copies_beside_training_use_the_same_memory(tmp_path, monkeypatch):
    """After the first save nothing new is allocated for what every checkpoint holds; a tensor that has grown
    gets memory of its own, and what is saved is what it holds."""
    folder = RunFolder(tmp_path / "run")
    network = nn.Linear(3, 3)
    saver = checkpoint.BackgroundSaver(folder, {"policy": Part(network)}, CONFIG)
    places, finish = [], checkpoint.finish

    def note_places(folder, snapshot, *rest):
        places.append({name: tensor.data_ptr() for name, tensor in snapshot.states["policy"].items()})
        return finish(folder, snapshot, *rest)

    monkeypatch.setattr(checkpoint, "finish", note_places)
    for iteration in range(3):
        nn.init.constant_(network.weight, float(iteration))
        saver.save(iteration, iteration)
        saver.wait()
        back = nn.Linear(3, 3)
        checkpoint.load_policy(folder, back)
        assert (back.weight == iteration).all()
    assert places[0] == places[1] == places[2]
    network.weight = nn.Parameter(torch.full((5, 3), 7.0))
    saver.save(3, 3)
    saver.wait()
    saver.close()
    assert (checkpoint.pin(folder).states["policy"]["weight"] == 7.0).all()


def test_a_part_that_may_be_missing_starts_anew(tmp_path, caplog):
    """Such as a hook that is new; other parts that are missing are an error."""
    folder = RunFolder(tmp_path / "run")
    checkpoint.save(folder, 1, 10, {"policy": Part(Number(1.0))}, CONFIG, keep=1)
    hook, policy = Number(5.0), Number(0.0)
    parts = {"policy": Part(policy), "hook": Part(hook, may_be_missing=True)}
    assert checkpoint.restore(folder, parts) == 2
    assert (policy.x, hook.x) == (1.0, 5.0)
    assert "hook.safetensors is not in this checkpoint; it starts anew" in caplog.text
    with pytest.raises(UserError, match=r"hook\.safetensors: is not in this checkpoint"):
        checkpoint.restore(folder, {"hook": Part(hook)})


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    """Two ranks cannot continue what one has written."""
    folder, parts = RunFolder(tmp_path / "run"), {"policy": Part(Number(1.0))}
    checkpoint.save(folder, 3, 300, parts, CONFIG, keep=1)
    message = "was written by 1 processes, and now there are 2; start as many, or set another"
    with pytest.raises(UserError, match=message):
        checkpoint.restore(folder, parts, Distributed(0, 2))


def test_a_large_part_is_written_at_once_and_without_a_copy(tmp_path):
    """What changes right after the save is not in the checkpoint; the memory for copies does not hold it."""
    folder, buffer = RunFolder(tmp_path / "run"), nn.Linear(3, 3)
    parts = {"policy": Part(nn.Linear(3, 3)), "replay": Part(buffer, is_large=True)}
    saver = checkpoint.BackgroundSaver(folder, parts, CONFIG)
    nn.init.constant_(buffer.weight, 1.0)
    saver.save(0, 0)
    nn.init.constant_(buffer.weight, 2.0)
    saver.wait()
    assert "replay" not in saver._memory
    assert checkpoint.restore(folder, parts) == 1
    assert (buffer.weight == 1.0).all()
    saver.close()


def test_a_large_part_that_cannot_be_written_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    folder, buffer = RunFolder(tmp_path / "run"), nn.Linear(3, 3)
    parts = {"policy": Part(nn.Linear(3, 3)), "replay": Part(buffer, is_large=True)}
    saver = checkpoint.BackgroundSaver(folder, parts, CONFIG)
    saver.save(0, 0)
    saver.wait()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device\)"):
        saver.save(1, 1)
    saver.close()
    assert [path.name for path in folder.saved()] == [checkpoint.checkpoint_name(0)]
    assert checkpoint.restore(folder, parts) == 1
