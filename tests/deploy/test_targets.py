"""What every target writes: whole, checked by others' tools, the same bytes again, acting like the policy."""

import gzip
import hashlib
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from pi_incubator.deploy.artifact import Source
from pi_incubator.deploy.bundle import archive_bytes, write_folder
from pi_incubator.errors import UserError
from pi_incubator.registry import exporters
from pi_incubator.runtime import Policy, RuntimeBundleError, read_bundle

BASE = {"policy.onnx", "contract.json", "SHA256SUMS"}
LINEAR = BASE | {"build_engine.py"}


@pytest.fixture(scope="module")
def jetson(walker, tmp_path_factory):
    """The archive, and what is in it, unpacked."""
    folder = tmp_path_factory.mktemp("jetson")
    archive = exporters.get("jetson")(walker[1], folder)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return archive, folder / "go1_velocity_policy-jetson"


@pytest.mark.parametrize("target", exporters.names())
def test_the_bundle_acts_like_the_policy(walker, target, tmp_path):
    source, artifact = walker
    policy = Policy.load(exporters.get(target)(artifact, tmp_path / "out"))
    recording, targets = source.recording, source.env.interface().targets
    for readings, begins, action in zip(*(part[:, 0] for part in _columns(recording)), strict=True):
        if begins:
            policy.reset()
        expected = targets.control(_tensor(action)).numpy()
        np.testing.assert_allclose(policy.step(readings), expected, atol=1e-5)


@pytest.mark.parametrize(("target", "names"), [("onnx", BASE), ("tensorrt", LINEAR)])
def test_a_folder_holds_what_its_target_needs(walker, target, names, tmp_path):
    folder = exporters.get(target)(walker[1], tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == names
    _check_sums(folder)
    if "build_engine.py" in names:
        assert os.access(folder / "build_engine.py", os.X_OK)


def test_a_folder_with_somebody_elses_files_is_not_replaced(walker, tmp_path):
    export, out = exporters.get("onnx"), tmp_path / "out"
    export(walker[1], out)
    (out / "engines").mkdir()
    (out / "engines" / "old.plan").write_bytes(b"")
    (out / "FAILED_GATES").write_text("parity\n")
    export(walker[1], out)
    assert {path.name for path in out.iterdir()} == BASE
    (out / "robot.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds robot.tar.gz, which is of no bundle; name another folder"):
        export(walker[1], out)
    assert (out / "robot.tar.gz").exists()


def test_the_archive_holds_all_that_a_robot_needs(jetson):
    _, folder = jetson
    assert {path.name for path in folder.iterdir()} == LINEAR | {"README.md", "pi-policy.service", "runtime"}
    _check_sums(folder)
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS"}
    readme = (folder / "README.md").read_text()
    assert "50 Hz" in readme
    assert "go1_velocity_policy-jetson.tar.gz" in readme


def test_the_vendored_runtime_needs_nothing_of_ours(jetson):
    script = """
import sys
sys.path[:0] = ["runtime"]
import numpy, pi_runtime
policy = pi_runtime.Policy.load(".")
target = policy.step(numpy.zeros(33, numpy.float32))
assert target.shape == (12,), target
ours = {name.split(".")[0] for name in sys.modules} & {"pi_incubator", "envs_gpu", "torch", "mujoco", "onnx"}
print(sorted(ours))
"""
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, cwd=jetson[1], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_two_exports_are_the_same_bytes(source_of, jetson, tmp_path):
    source = source_of("go1_velocity", 1, "mlp")
    again = exporters.get("jetson")(Source.artifact(source), tmp_path)
    assert again.read_bytes() == jetson[0].read_bytes()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_two_exports_in_fewer_bits_are_the_same_bytes(source_of, precision):
    source = source_of("ant", 1, "mlp")
    assert Source.artifact(source, precision).model == source.artifact(precision).model


def test_an_archive_tells_neither_time_nor_owner(jetson):
    with tarfile.open(jetson[0]) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {(member.mtime, member.uid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert jetson[0].read_bytes()[4:8] == bytes(4)  # gzip's own time
    assert b"/tmp" not in gzip.decompress(jetson[0].read_bytes())


def test_an_archive_does_not_depend_on_the_order_of_its_files():
    files = {"b": b"2", "a": b"1"}
    assert archive_bytes(files, "x") == archive_bytes(dict(sorted(files.items())), "x")


def test_a_changed_file_is_refused(walker, tmp_path):
    folder = exporters.get("onnx")(walker[1], tmp_path / "out")
    file = folder / "policy.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True).returncode == 1
    with pytest.raises(RuntimeBundleError, match="SHA-256"):
        read_bundle(folder)


def test_a_bundle_replaces_a_bundle_alone(walker, tmp_path):
    out = tmp_path / "out"
    exporters.get("tensorrt")(walker[1], out)
    exporters.get("onnx")(walker[1], out)
    assert {path.name for path in out.iterdir()} == BASE
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=r"holds .*file, which is of no bundle"):
            write_folder({"a": b""}, taken)
    with pytest.raises(UserError, match="cannot be written"):
        write_folder({"a": b""}, tmp_path / "file" / "below")


def _columns(recording):
    return recording.readings, recording.begins, recording.action


def _tensor(action):
    import torch

    return torch.from_numpy(action)


def _check_sums(folder):
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    line = (folder / "SHA256SUMS").read_text().splitlines()[0]
    name = line.split("  ")[1]
    assert line.startswith(hashlib.sha256((folder / name).read_bytes()).hexdigest())
