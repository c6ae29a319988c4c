"""Checkpoints: bit-exact, whole or not there at all, and checked when they are read."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from envs_gpu.make import make_env
from envs_gpu.vec_env import VecEnv
from pi_incubator import checkpoint, checkpoint_files, faults
from pi_incubator.checkpoint import Part
from pi_incubator.checkpoint_files import manifest_text
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder
from pi_incubator.training.adam import Adam

CONFIG = ExperimentConfig()

# Saves iteration 1, then dies in the middle of saving iteration 2, at a given call of the operating system.
DIE_WHILE_SAVING = """
import os, signal, sys
import torch
from pi_incubator import checkpoint
from pi_incubator.checkpoint import Part
from pi_incubator.config import ExperimentConfig
from pi_incubator.run_folder import RunFolder

def save(iteration):
    parts = {"policy": Part(torch.nn.Linear(2, 2)), "env": Part(torch.nn.Linear(3, 3))}
    checkpoint.save(RunFolder(sys.argv[1]), iteration, iteration * 10, parts, ExperimentConfig(), keep=1)

def save_beside(iteration):
    parts = {"policy": Part(torch.nn.Linear(2, 2)), "env": Part(torch.nn.Linear(3, 3))}
    cfg = ExperimentConfig.model_validate({"checkpoint": {"keep": 1}})
    saver = checkpoint.BackgroundSaver(RunFolder(sys.argv[1]), parts, cfg)
    saver.save(iteration, iteration * 10)
    saver.wait()

save(1)
setattr(os, sys.argv[2], lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL))
{"at once": save, "beside training": save_beside}[sys.argv[3]](2)
"""


class Holder:
    """A part that holds the tensors it is given."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tensors = state


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def save(folder: RunFolder, iteration: int, keep: int = 3, **tensors: Tensor) -> Path:
    """Save a policy that holds `tensors`, or the iteration's number."""
    policy = Holder(**(tensors or {"x": torch.tensor(float(iteration))}))
    return checkpoint.save(folder, iteration, iteration * 100, {"policy": Part(policy)}, CONFIG, keep)


def restored(folder: RunFolder) -> tuple[int, float]:
    """The iteration to continue with, and what the policy of `save` held."""
    policy = Holder(x=torch.tensor(0.0))
    return checkpoint.restore(folder, {"policy": Part(policy)}), policy.tensors["x"].item()


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.tensor(2**62 + 1),
        torch.tensor([True, False]),
        torch.tensor([0.1, float("nan"), float("-inf")], dtype=torch.float64),
        torch.randn(3, 5).t(),
        torch.randn(8)[::2],
        torch.arange(3).expand(2, 3),
        torch.zeros(4, 0),
        torch.randn(4).share_memory_(),
        torch.randn(4, dtype=torch.bfloat16),
        nn.Parameter(torch.randn(2)),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{list(tensor.shape)}-{list(tensor.stride())}".replace("torch.", ""),
)
def test_every_kind_of_tensor_comes_back_bit_exact(folder: RunFolder, tensor: Tensor) -> None:
    save(folder, 0, x=tensor)
    policy = Holder(x=torch.empty_like(tensor))
    checkpoint.restore(folder, {"policy": Part(policy)})
    back = policy.tensors["x"]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    torch.testing.assert_close(back, tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_tensors_that_share_memory_are_saved(folder: RunFolder) -> None:
    whole = torch.arange(6.0)
    save(folder, 0, whole=whole, part=whole[2:4])
    policy = Holder()
    checkpoint.restore(folder, {"policy": Part(policy)})
    assert policy.tensors["part"].tolist() == [2.0, 3.0]


def test_random_numbers_continue(folder: RunFolder) -> None:
    save(folder, 0)
    expected = torch.randn(5)
    torch.manual_seed(123)
    restored(folder)
    assert torch.equal(torch.randn(5), expected)


def test_env_continues_bit_exact(folder: RunFolder) -> None:
    def make(seed: int) -> VecEnv:
        return make_env("cartpole_balance", num_envs=3, device=torch.device("cpu"), seed=seed)

    env, other = make(1), make(2)
    actions = torch.rand(8, 3, env.spec.action_dim) * 2 - 1
    for action in actions[:4]:
        env.step(action)
    checkpoint.save(folder, 0, 12, {"env": Part(env)}, CONFIG, keep=1)
    checkpoint.restore(folder, {"env": Part(other)})
    for action in actions[4:]:
        expected, result = env.step(action), other.step(action)
        assert torch.equal(result.obs["policy"], expected.obs["policy"])
        assert torch.equal(result.reward, expected.reward)


def test_without_a_checkpoint_the_run_starts_at_zero(folder: RunFolder) -> None:
    policy = Holder(x=torch.tensor(7.0))
    assert checkpoint.next_iteration(folder) == 0
    assert checkpoint.restore(folder, {"policy": Part(policy)}) == 0
    assert policy.tensors["x"] == 7.0


def test_run_continues_after_the_newest(folder: RunFolder) -> None:
    save(folder, 9)
    save(folder, 10)
    assert checkpoint.next_iteration(folder) == 11
    assert restored(folder) == (11, 10.0)


def test_oldest_are_deleted(folder: RunFolder) -> None:
    for iteration in (99_999_998, 99_999_999, 100_000_000, 100_000_001):
        save(folder, iteration, keep=2)
    assert [path.name for path in folder.saved()] == ["iter_100000000", "iter_100000001"]


def test_saving_an_iteration_again_replaces_it(folder: RunFolder) -> None:
    save(folder, 5, x=torch.tensor(1.0))
    save(folder, 5, x=torch.tensor(2.0))
    assert restored(folder) == (6, 2.0)
    assert len(list(folder.checkpoints.iterdir())) == 1


def test_manifest_says_what_it_is(folder: RunFolder) -> None:
    manifest = json.loads((save(folder, 5) / "manifest.json").read_text())
    assert (manifest["iteration"], manifest["env_steps"]) == (5, 500)
    assert manifest["libraries"]["torch"] == torch.__version__
    assert set(manifest["files"]) == {"policy.safetensors", "random.safetensors"}
    assert len(manifest["config_sha256"]) == 64


@pytest.mark.parametrize(
    ("call", "how"), [("fsync", "at once"), ("fsync", "beside training"), ("rename", "beside training")]
)
def test_a_kill_while_saving_leaves_the_one_before(folder: RunFolder, call: str, how: str) -> None:
    command = [sys.executable, "-c", DIE_WHILE_SAVING, str(folder.path), call, how]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert len(list(folder.checkpoints.iterdir())) == 2  # the one before, and what was being written
    parts = {"policy": Part(nn.Linear(2, 2)), "env": Part(nn.Linear(3, 3))}
    assert checkpoint.restore(folder, parts) == 2
    checkpoint.save(folder, 2, 20, parts, CONFIG, keep=1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["iter_00000002"]


@pytest.mark.parametrize("phase", ["", *(f":{phase}" for phase in faults.PHASES)])
def test_a_fault_reaches_every_phase_of_a_save(
    folder: RunFolder, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `make faults` would try something else than it says."""
    save(folder, 1)
    monkeypatch.setattr(faults, "PLAN", faults.Plan(f"raise@save{phase}"))
    with pytest.raises(RuntimeError, match="PI_FAULT"):
        save(folder, 2)
    assert restored(folder)[0] in (2, 3)  # whole, whichever it is


def test_the_hash_of_a_manifest_does_not_depend_on_the_order_of_its_fields() -> None:
    one, other = (json.loads(manifest_text(fields)) for fields in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert one == other


@pytest.mark.parametrize("file", ["policy.safetensors", "random.safetensors", "manifest.json"])
def test_a_damaged_one_falls_back_with_a_warning(
    folder: RunFolder, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, 1)
    broken = save(folder, 2) / file
    if file == "manifest.json":
        broken.write_text(broken.read_text()[:50])
    else:
        damage(broken)
    with caplog.at_level(logging.WARNING):
        assert restored(folder) == (2, 1.0)
    assert "iter_00000002 is damaged" in caplog.text


def test_a_missing_file_is_damage(folder: RunFolder) -> None:
    save(folder, 1)
    (save(folder, 2) / "policy.safetensors").unlink()
    assert restored(folder) == (2, 1.0)


def test_a_damaged_one_does_not_outlive_the_good(folder: RunFolder) -> None:
    save(folder, 1)
    damage(save(folder, 100) / "policy.safetensors")
    restored(folder)
    save(folder, 50, keep=1)
    assert restored(folder) == (51, 50.0)


def test_all_damaged_is_an_error_that_deletes_nothing(folder: RunFolder) -> None:
    damage(save(folder, 1) / "policy.safetensors")
    for _ in range(2):
        with pytest.raises(UserError, match="resume=never"):
            restored(folder)
    assert folder.saved()


@pytest.mark.parametrize("here", [torch.zeros(3), torch.tensor(0, dtype=torch.int64)], ids=["shape", "dtype"])
def test_what_does_not_fit_is_named(folder: RunFolder, here: Tensor) -> None:
    save(folder, 1)
    with pytest.raises(UserError, match=r"policy\.safetensors: has float32 \[\] for 'x'") as error:
        checkpoint.restore(folder, {"policy": Part(Holder(x=here))})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("parts", [{"policy": Part(Holder(other=torch.zeros(1)))}, {"env": Part(Holder())}])
def test_what_is_missing_is_an_error(folder: RunFolder, parts: dict[str, Part]) -> None:
    save(folder, 1)
    with pytest.raises(UserError):
        checkpoint.restore(folder, parts)


def test_a_place_that_cannot_be_written_is_one_line(folder: RunFolder) -> None:
    folder.path.mkdir()
    folder.checkpoints.touch()
    with pytest.raises(UserError, match="cannot be written") as error:
        save(folder, 1)
    assert "\n" not in str(error.value)


def test_policy_is_loaded_by_path(folder: RunFolder) -> None:
    network = nn.Linear(2, 3)
    checkpoint.save(folder, 4, 400, {"policy": Part(network), "env": Part(Holder())}, CONFIG, keep=1)
    loaded = nn.Linear(2, 3)
    found = checkpoint.load_policy(folder.path, loaded)
    assert (found.iteration, found.env_steps) == (4, 400)
    assert torch.equal(loaded.weight, network.weight)


def test_policy_of_a_run_without_checkpoint_is_an_error(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="has no checkpoint"):
        checkpoint.load_policy(folder, nn.Linear(1, 1))


def save_with_buffer(folder: RunFolder, iteration: int) -> Path:
    """Save a policy and a buffer that only the newest checkpoint keeps; both hold the iteration."""
    number = torch.tensor(float(iteration))
    parts = {"policy": Part(Holder(x=number)), "replay": Part(Holder(x=number), saved="last")}
    return checkpoint.save(folder, iteration, iteration * 100, parts, CONFIG, keep=3)


def test_what_is_saved_last_is_in_the_newest_checkpoint_only(folder: RunFolder) -> None:
    """A large part takes its room on disk once; every checkpoint has the others."""
    paths = [save_with_buffer(folder, iteration) for iteration in (1, 2, 3)]
    assert [(path / "replay.safetensors").exists() for path in paths] == [False, False, True]
    assert all((path / "policy.safetensors").exists() for path in paths)
    replay = Holder(x=torch.tensor(0.0))
    assert checkpoint.restore(folder, {"replay": Part(replay, saved="last")}) == 4
    assert replay.tensors["x"] == 3.0


def test_an_older_checkpoint_continues_without_what_is_saved_last(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the newest is damaged, the one before is whole; the lack of its large part is a warning."""
    save_with_buffer(folder, 1)
    damage(save_with_buffer(folder, 2) / "policy.safetensors")
    policy, replay = Holder(x=torch.tensor(0.0)), Holder(x=torch.tensor(7.0))
    with caplog.at_level(logging.WARNING):
        parts = {"policy": Part(policy), "replay": Part(replay, saved="last")}
        assert checkpoint.restore(folder, parts) == 2
    assert (policy.tensors["x"], replay.tensors["x"]) == (1.0, 7.0)
    assert "iter_00000002 is damaged" in caplog.text
    assert "replay.safetensors was kept in a newer checkpoint only" in caplog.text


def test_what_is_never_saved_is_neither_written_nor_missed(folder: RunFolder) -> None:
    """A part that is saved as `never` leaves no file and keeps what it has."""
    scratch = Holder(x=torch.tensor(7.0))
    parts = {"policy": Part(Holder(x=torch.tensor(1.0))), "scratch": Part(scratch, saved="never")}
    path = checkpoint.save(folder, 0, 0, parts, CONFIG, keep=1)
    assert not (path / "scratch.safetensors").exists()
    assert checkpoint.restore(folder, parts) == 1
    assert scratch.tensors["x"] == 7.0


def flip_bits(folder: RunFolder, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """Flip one bit of the newest checkpoint `count` times, anywhere in its files; it is found every time."""
    x = torch.arange(50.0)
    save(folder, 1, x=x)
    newest = save(folder, 2, x=x)
    files = [path for path in sorted(newest.iterdir()) for _ in range(path.stat().st_size)]
    generator = torch.Generator().manual_seed(0)
    for place, bit in zip(
        torch.randint(len(files), (count,), generator=generator).tolist(),
        torch.randint(8, (count,), generator=generator).tolist(),
        strict=True,
    ):
        file = files[place]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[place - files.index(file)] ^= 1 << bit
        file.write_bytes(damaged)
        caplog.clear()
        found = checkpoint.latest(folder)
        assert found is not None
        assert found.iteration == 1, f"bit {bit} of byte {place - files.index(file)} of {file.name}"
        assert "iter_00000002 is damaged" in caplog.text
        assert checkpoint.pin(folder, ("policy", "random")).checkpoint.iteration == 1
        file.write_bytes(whole)
    assert checkpoint.next_iteration(folder) == 3


def test_a_flipped_bit_is_found_and_the_one_before_is_used(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file is covered, the manifest too, by whoever reads it."""
    flip_bits(folder, 60, caplog)


@pytest.mark.slow
def test_two_hundred_flipped_bits_are_found(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    """The same with 200 bits."""
    flip_bits(folder, 200, caplog)


def test_each_bit_of_the_number_of_the_format_is_found(folder: RunFolder) -> None:
    """A damaged number is damage, and not the format of another version."""
    save(folder, 1)
    manifest = save(folder, 2) / "manifest.json"
    whole = manifest.read_bytes()
    for bit in range(8):
        damaged = bytearray(whole)
        damaged[whole.index(b'"format": ') + len(b'"format": ')] ^= 1 << bit
        manifest.write_bytes(damaged)
        assert restored(folder) == (2, 1.0)
        (folder.checkpoints / "iter_00000002.damaged").rename(manifest.parent)


@pytest.mark.parametrize("file", ["policy.safetensors", "random.safetensors", "manifest.json"])
@pytest.mark.parametrize("length", [0, 1, 50, -1])
def test_a_truncated_file_is_found(folder: RunFolder, file: str, length: int) -> None:
    """A file that ends early, or is empty, is damage wherever it ends."""
    save(folder, 1)
    path = save(folder, 2) / file
    path.write_bytes(path.read_bytes()[:length])
    assert checkpoint.load_policy(folder, Holder(x=torch.tensor(0.0))).iteration == (
        2 if file.startswith("random") else 1  # a reader checks what it reads
    )
    assert restored(folder) == (2, 1.0)


def test_a_missing_manifest_is_damage(folder: RunFolder) -> None:
    save(folder, 1)
    (save(folder, 2) / "manifest.json").unlink()
    assert restored(folder) == (2, 1.0)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "inner/file"])
def test_a_manifest_that_names_files_elsewhere_is_damage(folder: RunFolder, name: str) -> None:
    """A checkpoint from somebody else reads nothing outside of its own folder, even with the right hashes."""
    save(folder, 1)
    path = save(folder, 2)
    (folder.checkpoints / "secret").write_text("x")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"][name] = hashlib.sha256(b"x").hexdigest()
    (path / "manifest.json").write_text(manifest_text(manifest))
    assert restored(folder) == (2, 1.0)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "2"}', '{"format": 2, "files": []}', "[" * 9999])
def test_a_manifest_of_another_shape_is_damage(folder: RunFolder, content: str) -> None:
    save(folder, 1)
    (save(folder, 2) / "manifest.json").write_text(content)
    assert restored(folder) == (2, 1.0)


def test_a_renamed_checkpoint_is_damage(folder: RunFolder) -> None:
    """Its name says with which iteration the run continues."""
    save(folder, 1)
    path = save(folder, 2)
    path.rename(path.with_name("iter_00000009"))
    assert restored(folder) == (2, 1.0)


def beside(folder: RunFolder, policy: Holder, keep: int = 3) -> checkpoint.BackgroundSaver:
    cfg = ExperimentConfig.model_validate({"checkpoint": {"keep": keep}})
    return checkpoint.BackgroundSaver(folder, {"policy": Part(policy)}, cfg)


def test_training_goes_on_while_a_checkpoint_is_written(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the state at the call; the next save waits until it is on disk."""
    may_write = threading.Event()
    publish = checkpoint.publish

    def waiting(*paths: Path) -> None:
        assert may_write.wait(10)
        publish(*paths)

    monkeypatch.setattr(checkpoint, "publish", waiting)
    policy = Holder(x=torch.tensor(1.0))
    saver = beside(folder, policy)
    saver.save(1, 100)
    policy.tensors["x"].fill_(2.0)  # training goes on
    assert folder.saved() == []
    may_write.set()
    saver.save(2, 200)
    assert folder.checkpoints / "iter_00000001" in folder.saved()
    policy.tensors["x"].fill_(3.0)
    saver.wait()
    saver.close()
    assert restored(folder) == (3, 2.0)
    (folder.checkpoints / "iter_00000002").rename(folder.path / "away")
    assert restored(folder) == (2, 1.0)


def test_a_checkpoint_that_cannot_be_written_is_an_error_of_the_next_call(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost in silence: the next save raises, and so does the wait at the end of training."""
    folder.path.mkdir()
    folder.checkpoints.touch()
    saver = beside(folder, Holder(x=torch.tensor(1.0)))
    saver.save(1, 100)
    with pytest.raises(UserError, match="iter_00000001: cannot be written"):
        saver.save(2, 200)
    saver.save(3, 300)
    with pytest.raises(UserError, match="iter_00000003: cannot be written"):
        saver.wait()
    saver.save(4, 400)
    saver.close()  # training has ended with another error, which this one must not hide
    assert "iter_00000004: cannot be written" in caplog.text


@pytest.mark.slow
def test_a_save_stops_training_for_50_ms_at_most(folder: RunFolder) -> None:
    """10 million parameters and Adam's two moments of each; the median of some saves."""
    network = nn.Sequential(*(nn.Linear(1581, 1581) for _ in range(4)))
    optimizer = Adam(list(network.parameters()), torch.tensor(1e-3))
    parts = {"policy": Part(network), "optimizer": Part(optimizer)}
    saver = checkpoint.BackgroundSaver(folder, parts, CONFIG)
    time.sleep(1.0)  # as the first iterations take
    stalls_s = []
    for iteration in range(5):
        began_s = time.perf_counter()
        saver.save(iteration, iteration)
        stalls_s.append(time.perf_counter() - began_s)
        saver.wait()
    saver.close()
    assert sorted(stalls_s)[2] < 0.050, stalls_s


def test_a_reader_whose_checkpoint_is_deleted_reads_the_next(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoint.keep=1 training deletes what a reader has just begun to read."""
    save(folder, 1, keep=1)
    read, others = checkpoint_files.read_manifest, iter([2, 3])

    def slow(path: Path) -> checkpoint.Checkpoint:
        found = read(path)
        for iteration in others:
            monkeypatch.setattr(checkpoint_files, "read_manifest", read)
            save(folder, iteration, keep=1)
            monkeypatch.setattr(checkpoint_files, "read_manifest", slow)
            break
        return found

    monkeypatch.setattr(checkpoint_files, "read_manifest", slow)
    policy = Holder(x=torch.tensor(0.0))
    found = checkpoint.load_policy(folder, policy)
    assert (found.iteration, found.env_steps, policy.tensors["x"].item()) == (3, 300, 3.0)


def test_parts_of_one_reader_are_of_one_checkpoint(folder: RunFolder) -> None:
    """What was pinned stays what it was, also when training has deleted its files."""
    parts = {"policy": Part(Holder(x=torch.tensor(1.0))), "critic": Part(Holder(x=torch.tensor(10.0)))}
    checkpoint.save(folder, 1, 100, parts, CONFIG, keep=1)
    pinned = checkpoint.pin(folder, ("policy", "critic", "nothing"))
    save(folder, 2, keep=1)
    assert [path.name for path in folder.saved()] == ["iter_00000002"]
    policy, critic = Holder(x=torch.tensor(0.0)), Holder(x=torch.tensor(0.0))
    pinned.load("policy", policy)
    pinned.load("critic", critic)
    assert (policy.tensors["x"], critic.tensors["x"], pinned.checkpoint.iteration) == (1.0, 10.0, 1)
    with pytest.raises(UserError, match=r"nothing\.safetensors: is not in this checkpoint"):
        pinned.load("nothing", policy)


def test_a_reader_never_advises_to_replace_a_run(folder: RunFolder) -> None:
    """Where no checkpoint can be read it waits for a run that is being trained, and else for a copy."""
    damage(save(folder, 1) / "policy.safetensors")
    with pytest.raises(UserError, match="restore them from a copy") as error:
        checkpoint.pin(folder)
    assert "resume=never" not in str(error.value)
    with folder, pytest.raises(UserError, match="being trained: wait for its next checkpoint"):
        checkpoint.pin(RunFolder(folder.path))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, "was written by pi_incubator 0.1.0, whose format this version does not read"),
        (3, "has format 3, this version reads 2; upgrade"),
    ],
)
def test_a_checkpoint_of_another_format_is_refused(folder: RunFolder, number: int, expected: str) -> None:
    """An older or newer format is no damage: one line names the version, and nothing is deleted."""
    save(folder, 1)
    manifest = save(folder, 2) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": number}))
    with pytest.raises(UserError, match=expected) as error:
        restored(folder)
    assert "\n" not in str(error.value)
    assert str(manifest.parent) in str(error.value)
    assert len(folder.saved()) == 2


def test_a_reader_says_which_checkpoint_is_damaged(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """And reads the one before."""
    save(folder, 1)
    damage(save(folder, 2) / "policy.safetensors")
    with caplog.at_level(logging.WARNING):
        assert checkpoint.pin(folder, ("policy",)).checkpoint.iteration == 1
    assert "iter_00000002 is damaged" in caplog.text


def test_a_manifest_with_a_number_beyond_64_bits_is_damage(folder: RunFolder) -> None:
    path = save(folder, 5)
    fields = json.loads((path / "manifest.json").read_text()) | {"env_steps": 2**63}
    (path / "manifest.json").write_text(manifest_text(without_own_hash(fields)))
    with pytest.raises(ValueError, match="which is no number of env_steps"):
        checkpoint_files.read_manifest(path)


def without_own_hash(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name != checkpoint_files.OWN_HASH}


def test_a_format_that_is_no_number_is_damage(folder: RunFolder) -> None:
    path = save(folder, 5)
    fields = json.loads((path / "manifest.json").read_text()) | {"format": "2"}
    (path / "manifest.json").write_text(manifest_text(without_own_hash(fields)))
    with pytest.raises(ValueError, match="a format that is no whole number"):
        checkpoint_files.read_manifest(path)
