"""Whatever lies in the folder of a checkpoint, readers take a whole one or say why not in one line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from envs_gpu.make import make_env
from pi_incubator import checkpoint
from pi_incubator.checkpoint import Part
from pi_incubator.checkpoint_files import MANIFEST, OWN_HASH, manifest_text, read_manifest
from pi_incubator.config import ExperimentConfig
from pi_incubator.data.replay.ring import Ring
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder
from pi_incubator.training.adam import Adam
from pi_incubator.training.algorithm import Counters

CPU = torch.device("cpu")
QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)
SECRET = "outside"
ODD_NAMES = st.sampled_from(
    [f"../../../{SECRET}", "..", ".", "", "/etc/hostname", "a/b", "a\0b", "\ud800", "x" * 300]
)
ODD_NUMBERS = st.sampled_from([-1, 2**63, 10**400, 1e400, -1e400, float("nan"), 2.0, True, "2", None, [], {}])
JSON = st.recursive(
    ODD_NUMBERS | ODD_NAMES | st.text(max_size=8) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


class Trainee:
    """Small parts of every kind that an algorithm has; all that they hold is a function of `value`."""

    def __init__(self, value: float) -> None:
        network = nn.Linear(2, 2)
        nn.init.constant_(network.weight, value)
        self.env = make_env("cartpole_balance", num_envs=2, device=CPU)
        random = ShardedRandom(0, "replay", range(1), CPU)
        self.ring = Ring(8, self.env.spec, ["policy"], random)
        self.progress = Counters()
        self.network = network
        self.parts = {
            "policy": Part(network, is_learned=True),
            "optimizer": Part(Adam(list(network.parameters()), torch.tensor(1e-3))),
            "env": Part(self.env, per_rank=True),
            "replay": Part(self.ring, saved="last", per_rank=True, any_size=True),
            "sampling": Part(random, per_rank=True),
            "progress": Part(self.progress),
        }

    def step(self) -> None:
        """Move the worlds once, and remember the step."""
        obs = self.env.obs["policy"].clone()
        action = torch.zeros(2, self.env.spec.action_dim)
        result = self.env.step(action)
        self.ring.add(
            {
                "action": action,
                "reward": result.reward,
                "terminated": result.terminated,
                "truncated": result.truncated,
                "valid": ~result.terminated,
                "obs.policy": obs,
                "next.policy": result.obs["policy"],
            }
        )


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses power, and some disks take 0.1 s."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with two whole checkpoints; the policy's weights are the iteration."""
    folder = RunFolder(tmp_path_factory.mktemp("good") / "run")
    for iteration in (1, 2):
        trainee = Trainee(float(iteration))
        for _ in range(iteration):
            trainee.step()
        checkpoint.save(folder, iteration, iteration * 10, trainee.parts, ExperimentConfig(), keep=5)
    return folder


@pytest.fixture(scope="module")
def trainee() -> Trainee:
    """What checkpoints are loaded into, again and again."""
    return Trainee(0.0)


def outcome(folder: RunFolder, trainee: Trainee) -> set[str]:
    """What readers and the next save do with a folder: each succeeds or raises one line."""
    ends = set()
    linear = nn.Linear(2, 2)
    for name, read in {
        "restore": lambda: checkpoint.restore(folder, trainee.parts),
        "next": lambda: checkpoint.next_iteration(folder),
        "policy": lambda: checkpoint.load_policy(folder, linear),
        "all": lambda: checkpoint.pin(folder, ("policy", "env", "replay", "random")),
    }.items():
        try:
            read()
            ends.add(name)
        except UserError as error:
            text = str(error)
            assert "\n" not in text
            assert len(text) < 1500
    return ends


def copy_of(good: RunFolder, place: Path) -> tuple[RunFolder, Path]:
    """A fresh copy of the good run beside a file that nobody may touch; and its newest checkpoint."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good.path, place / "run")
    (place / SECRET).write_text("mine")
    folder = RunFolder(place / "run")
    return folder, folder.saved()[-1]


def write_manifest(path: Path, manifest: dict[str, object]) -> None:
    """Write a manifest with the hash that fits it."""
    manifest.pop(OWN_HASH, None)
    with contextlib.suppress(UnicodeEncodeError):
        (path / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")


def sign(path: Path) -> None:
    """Give the manifest the hashes of the files as they are now: nothing can tell that they were changed."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"] = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("*.safetensors")
    }
    write_manifest(path, manifest)


@st.composite
def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with bytes changed, cut off, left out or added, and never as it was."""
    new = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(new) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "leave out", "add"]))
        if kind == "flip" and new:
            new[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del new[at:]
        elif kind == "leave out":
            del new[at : at + draw(st.integers(1, 9))]
        else:
            new[at:at] = draw(st.binary(min_size=1, max_size=9))
    return bytes(new) if bytes(new) != data else data + b"x"


def test_any_damaged_file_is_found(good: RunFolder, trainee: Trainee, tmp_path: Path) -> None:
    """Bytes of any file are others: the checkpoint before it is used, and holds what it held."""

    @given(st.data())
    @QUICK
    def check(data: st.DataObject) -> None:
        folder, newest = copy_of(good, tmp_path / "fuzz")
        file = data.draw(st.sampled_from(sorted(newest.iterdir())))
        file.write_bytes(data.draw(changed(file.read_bytes())))
        assert checkpoint.restore(folder, trainee.parts) == 2
        assert (trainee.network.weight == 1.0).all()
        assert len(trainee.ring) in (2, 0, 4)  # the older checkpoint has lost its buffer

    check()


HEADERS = st.builds(
    lambda entries, tail: _file(json.dumps(entries).encode(), tail),
    st.dictionaries(
        st.sampled_from(["weight", "bias", "x", "__metadata__"]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "F4", "C64", "x"]),
                "shape": st.lists(st.sampled_from([0, 1, 2, 2**31, 2**62, -1]), max_size=3),
                "data_offsets": st.lists(st.sampled_from([0, 4, 8, 16, 2**62, -1]), min_size=1, max_size=3),
            }
        )
        | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        max_size=3,
    ),
    st.binary(max_size=24),
)
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value, dtype=torch.float64).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.bool]),
    st.sampled_from([0.0, 1.0, -7.0, 1e300, float("nan"), 2.0**62]),
)


def _file(header: bytes, tail: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + tail


@st.composite
def other_tensors(draw: st.DrawFn, state: dict[str, Tensor]) -> bytes:
    """A file of tensors in which some are others, missing or more."""
    state = dict(state)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([*state, "more"]))
        kind = draw(st.sampled_from(["values", "values", "another", "missing"]))
        if kind == "another" or name not in state:
            state[name] = draw(TENSORS)
        elif kind == "missing":
            del state[name]
        elif state[name].numel():
            value = draw(st.sampled_from([0.0, -7.0, 3.0, 1e300, float("nan")]))
            state[name] = torch.full(state[name].shape, value, dtype=torch.float64).to(state[name].dtype)
    return to_bytes(state)


def test_a_hostile_file_with_the_right_hash_is_one_line(
    good: RunFolder, trainee: Trainee, tmp_path: Path
) -> None:
    """Hashes prove who wrote nothing: any bytes, headers and tensors may stand behind them."""
    refused = []
    states = {file.stem: checkpoint.load_file(file) for file in good.saved()[-1].glob("*.safetensors")}

    @given(st.data())
    @QUICK
    def check(data: st.DataObject) -> None:
        folder, newest = copy_of(good, tmp_path / "fuzz")
        file = data.draw(st.sampled_from(sorted(newest.glob("*.safetensors"))))
        whole = file.read_bytes()
        file.write_bytes(
            data.draw(st.binary(max_size=40) | changed(whole) | HEADERS | other_tensors(states[file.stem]))
        )
        sign(newest)
        refused.append("restore" not in outcome(folder, trainee))
        if not refused[-1] and len(trainee.ring):
            trainee.ring.sample(4)  # what was taken can be used

    check()
    assert 0.3 < sum(refused) / len(refused) < 1.0


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("policy", "more", torch.zeros(1)),
        ("replay", "count", torch.tensor([1, 2])),
        ("replay", "count", torch.tensor(-1)),
        ("sampling", "0", None),
        ("random", "cpu", None),
    ],
)
def test_a_state_that_a_part_refuses_is_one_line(
    good: RunFolder, trainee: Trainee, tmp_path: Path, name: str, key: str, value: Tensor | None
) -> None:
    """With file and fix; None is a state of a generator that torch refuses."""
    folder, newest = copy_of(good, tmp_path)
    file = newest / f"{name}.safetensors"
    state = checkpoint.load_file(file)
    state[key] = torch.full_like(state[key], 255) if value is None else value
    file.write_bytes(to_bytes(state))
    sign(newest)
    with pytest.raises(
        UserError, match=rf"{name}\.safetensors: cannot be continued \(has .*\); continue with"
    ):
        checkpoint.restore(folder, trainee.parts)


@pytest.mark.parametrize("bug", [RuntimeError, ValueError, KeyError, OverflowError])
def test_a_bug_in_loading_keeps_its_traceback(good: RunFolder, bug: type[Exception]) -> None:
    """What a part or a hook does wrong is no mistake of the user's, and is not told as one."""

    class Faulty(nn.Linear):
        def load_state_dict(self, *_: object, **__: object) -> None:
            raise bug("a bug of the part")

    new = Trainee(0.0)
    parts = new.parts | {"policy": Part(Faulty(2, 2))}
    with pytest.raises(bug, match="a bug of the part") as caught:
        checkpoint.restore(good, parts)
    assert caught.traceback[-1].name == "load_state_dict"


def test_a_hostile_manifest_with_the_right_hash_is_damage(
    good: RunFolder, trainee: Trainee, tmp_path: Path
) -> None:
    """Any field may hold anything; nothing outside of the run is read, and nothing is deleted by a save."""

    @given(st.data())
    @QUICK
    def check(data: st.DataObject) -> None:
        folder, newest = copy_of(good, tmp_path / "fuzz")
        manifest = json.loads((newest / MANIFEST).read_text())
        for key in data.draw(st.lists(st.sampled_from(sorted(manifest)), min_size=1, max_size=2)):
            if key == "files" and data.draw(st.booleans()):
                for name in data.draw(st.lists(st.sampled_from(sorted(manifest[key])), unique=True)):
                    del manifest[key][name]
                    if data.draw(st.booleans()):
                        (newest / name).unlink()
                        os.mkfifo(newest / name)
            elif key in ("files", "only_newest") and data.draw(st.booleans()):
                names = data.draw(st.lists(ODD_NAMES, max_size=2))
                manifest[key] = names if key == "only_newest" else dict.fromkeys(names, "0" * 64)
            else:
                manifest[key] = data.draw(ODD_NUMBERS | JSON)
        write_manifest(newest, manifest)
        outcome(folder, trainee)
        checkpoint.save(folder, 3, 30, trainee.parts, ExperimentConfig(), keep=2)
        assert (tmp_path / "fuzz" / SECRET).read_text() == "mine"

    check()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to nothing", "link to itself"])
@pytest.mark.parametrize("file", [MANIFEST, "policy.safetensors"])
def test_what_is_no_file_is_damage_and_nobody_waits_for_it(
    good: RunFolder, trainee: Trainee, tmp_path: Path, kind: str, file: str
) -> None:
    """A pipe without a writer and a device without an end are not read."""
    folder, newest = copy_of(good, tmp_path)
    place = newest / file
    place.unlink()
    match kind:
        case "folder":
            place.mkdir()
        case "pipe":
            os.mkfifo(place)
        case "device":
            place.symlink_to("/dev/zero")
        case "link to nothing":
            place.symlink_to(tmp_path / "nothing")
        case _:
            place.symlink_to(place)
    assert checkpoint.pin(folder).checkpoint.iteration == 1
    assert checkpoint.restore(folder, trainee.parts) == 2


def leave_out(newest: Path, name: str) -> None:
    """Take a file off the list of the manifest, whose hash is made to fit."""
    manifest = json.loads((newest / MANIFEST).read_text())
    del manifest["files"][name]
    write_manifest(newest, manifest)


@pytest.mark.parametrize("kind", ["changed", "pipe"])
@pytest.mark.parametrize("name", ["policy", "env", "replay", "random"])
def test_a_file_that_the_manifest_does_not_list_is_not_in_the_checkpoint(
    good: RunFolder, tmp_path: Path, kind: str, name: str
) -> None:
    """Nothing has verified it: not a byte of it is loaded, and nobody waits for it."""
    folder, newest = copy_of(good, tmp_path)
    file = newest / f"{name}.safetensors"
    if kind == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    else:
        file.unlink()
        os.mkfifo(file)
    leave_out(newest, file.name)
    new = Trainee(0.0)
    if name == "replay":  # an older checkpoint lacks it too
        assert checkpoint.restore(folder, new.parts) == 3
        assert len(new.ring) == 0
        return
    with pytest.raises(UserError, match=rf"{name}\.safetensors: is not in this checkpoint"):
        checkpoint.restore(folder, new.parts)


def test_an_unlisted_pipe_is_left_alone(good: RunFolder, trainee: Trainee, tmp_path: Path) -> None:
    """Files that the manifest does not name are not opened."""
    folder, newest = copy_of(good, tmp_path)
    os.mkfifo(newest / "notes.txt")
    assert checkpoint.restore(folder, trainee.parts) == 3


@pytest.mark.parametrize("name", [f"../../../{SECRET}", "/etc/hostname", "a/../b"])
def test_a_save_deletes_nothing_that_a_foreign_manifest_names_elsewhere(
    good: RunFolder, trainee: Trainee, tmp_path: Path, name: str
) -> None:
    """`only_newest` names files to delete when a newer checkpoint is there: of this checkpoint alone."""
    folder, newest = copy_of(good, tmp_path)
    manifest = json.loads((newest / MANIFEST).read_text())
    manifest["only_newest"] = [name]
    write_manifest(newest, manifest)
    with pytest.raises(ValueError, match="outside of the checkpoint"):
        read_manifest(newest)
    checkpoint.save(folder, 3, 30, trainee.parts, ExperimentConfig(), keep=3)
    assert (tmp_path / SECRET).read_text() == "mine"
