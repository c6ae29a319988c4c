"""Gates let a sound bundle through and hold a spoiled one back, and write down what they found."""

import hashlib
import json
import math
import shutil
import tarfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pi_incubator.checkpoint_files import manifest_text
from pi_incubator.cli import eval as eval_command
from pi_incubator.cli import export as export_command
from pi_incubator.cli._trained import load_trained
from pi_incubator.deploy.gates import latency, robustness
from pi_incubator.deploy.gates._base import Candidate, Result, kept_share
from pi_incubator.deploy.gates._verdict import judge, mark
from pi_incubator.deploy.gates.sim_to_sim import sensor_noise
from pi_incubator.errors import UserError
from pi_incubator.registry import exporters, gates
from pi_incubator.run_folder import open_run
from pi_incubator.runtime import Policy, RuntimeBundleError, read_bundle
from pi_incubator.runtime import bench as runtime_bench

NAMES = ["latency", "parity", "robustness", "sim_to_sim"]


@pytest.fixture(scope="module")
def bundle(standing):
    """A bundle that no gate has seen, in its run's folder."""
    assert export_command.main([str(standing.path), "--episodes", "1"]) == 0
    return standing.path / "export" / "onnx"


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.fixture(scope="module")
def trained(standing):
    cfg, folder = open_run(str(standing.path), "cpu")
    env, policy, _ = load_trained(cfg, folder, 2)
    return cfg, folder, env, policy


@pytest.fixture
def candidate_of(trained):
    return lambda path: Candidate(read_bundle(path), *trained, num_episodes=2)


@pytest.fixture
def few_cells(monkeypatch):
    """A sweep of eight worlds instead of 200."""
    mass = robustness.Axis("mass", "mass", (0.9, 1.1), (0.9, 1.1))
    friction = robustness.Axis("friction", "friction", (0.8, 1.2), (0.8, 1.2))
    delay = robustness.Axis("delay_s", "delay", (0.0, 10.0), (0.0, 10.0), 1e-3)
    push = robustness.Axis("push", "push", (0.0, 0.25), (0.0, 0.25))
    monkeypatch.setattr(robustness, "GRIDS", ((mass, friction), (delay, push)))
    monkeypatch.setattr(robustness, "WORLDS_PER_CELL", 1)


@pytest.fixture
def cpu_clock(monkeypatch):
    """Steps are timed by their thread's own clock: what else the machine runs does not count."""
    clock = SimpleNamespace(perf_counter_ns=time.thread_time_ns, monotonic_ns=time.thread_time_ns)
    monkeypatch.setattr(runtime_bench, "time", clock)
    monkeypatch.setattr(latency, "PACED_S", 1.0)


def test_every_gate_is_registered():
    assert gates.names() == NAMES


def test_a_sound_bundle_passes_and_the_contract_says_so(copy, standing, few_cells, cpu_clock, capsys):
    before = (copy / "policy.onnx").read_bytes()
    assert eval_command.main([str(standing.path), "--gates", str(copy), "--device", "cpu"]) == 0
    found = read_bundle(copy).contract.raw["gates"]  # its hashes match
    assert sorted(found) == NAMES
    assert all(entry["passed"] for entry in found.values())
    assert found["parity"]["value"] <= 1e-5
    assert found["parity"]["observations"] == 200
    assert found["latency"]["limit"] == pytest.approx(2.0)  # ms, a tenth of 50 Hz's period
    assert found["sim_to_sim"]["latency_ms"] == pytest.approx(5.0)
    assert (copy / "policy.onnx").read_bytes() == before
    assert (copy / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert not (copy / "FAILED_GATES").exists()
    assert "every gate is passed" in capsys.readouterr().out


def test_a_spoiled_file_fails_and_is_marked(copy, standing, spoil, monkeypatch, capsys):
    spoil(copy, 1.01)
    monkeypatch.setattr(gates, "names", lambda: ["parity"])
    assert eval_command.main([str(standing.path), "--gates", str(copy), "--device", "cpu"]) == 1
    assert "failed: parity" in capsys.readouterr().out
    found = read_bundle(copy)
    assert found.failed_gates
    assert found.contract.raw["gates"]["parity"]["passed"] is False
    assert (copy / "FAILED_GATES").read_text() == "parity\n"


def test_a_policy_that_falls_fails_in_the_other_simulator(copy, candidate_of, spoil):
    spoil(copy, 100.0)
    (result,) = judge(candidate_of(copy), ["sim_to_sim"]).values()
    assert not result.passed
    assert result.details["return"] < 0.5 * result.details["training_simulator_return"]


def test_a_policy_that_falls_is_not_robust(copy, candidate_of, spoil, few_cells):
    spoil(copy, 100.0)
    assert not robustness.robustness(candidate_of(copy)).passed


@pytest.mark.slow
def test_without_latency_and_noise_the_other_simulator_is_the_same_one(copy, candidate_of, monkeypatch):
    """The link, the process and the runtime change nothing: C MuJoCo gives the return that it gave here."""
    module = "pi_incubator.deploy.gates.sim_to_sim"
    monkeypatch.setattr(f"{module}.LATENCY_S", 0.0)
    monkeypatch.setattr(f"{module}.sensor_noise", lambda candidate: np.zeros(33))
    (result,) = judge(candidate_of(copy), ["sim_to_sim"]).values()
    assert result.value == pytest.approx(1.0, abs=0.01)
    assert result.details["flagged_share"] == 0


def test_noise_is_the_tasks_and_commands_have_none(copy, candidate_of):
    noise = sensor_noise(candidate_of(copy))
    expected = np.repeat([0.05, 0.2, 0.0, 0.01, 1.5], [3, 3, 3, 12, 12])
    np.testing.assert_allclose(noise, expected, rtol=1e-6)


def test_a_gate_that_breaks_is_not_passed(copy, standing, monkeypatch, capsys):
    assert not (copy / "FAILED_GATES").exists()

    def breaks(_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(gates, "names", lambda: ["parity"])
    monkeypatch.setattr(gates, "get", lambda _: breaks)
    assert eval_command.main([str(standing.path), "--gates", str(copy), "--device", "cpu"]) == 1
    assert read_bundle(copy).contract.raw["gates"]["parity"]["error"] == "RuntimeError: no such thing"
    assert "parity: RuntimeError: no such thing" in capsys.readouterr().out
    with pytest.raises(RuntimeBundleError, match="failed its gates and is not for a robot"):
        Policy.load(copy)
    assert Policy.load(copy, allow_failed_gates=True).contract.name


@pytest.mark.parametrize("option", [["--backend", "warp"], ["--seed", "3"], ["--onnx"], ["--video", "x.mp4"]])
def test_gates_refuse_options_that_say_nothing_to_them(copy, standing, option):
    with pytest.raises(UserError, match=f"{option[0]} says nothing to --gates"):
        eval_command.main([str(standing.path), "--gates", str(copy), *option])


def test_a_bundle_of_an_older_checkpoint_is_refused(bundle, standing, tmp_path):
    run = shutil.copytree(standing.path, tmp_path / standing.path.name)
    file = next(run.glob("checkpoints/*/policy.safetensors"))
    save_file({name: value + 1e-3 for name, value in load_file(file).items()}, file)
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    del manifest["sha256"]
    (file.parent / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(UserError, match="policy_sha256 is not that of the newest checkpoint"):
        eval_command.main([str(run), "--gates", str(bundle), "--device", "cpu"])


def test_gates_find_the_run_that_a_bundle_lies_in(bundle, copy):
    with pytest.raises(UserError, match="lies in no run's folder"):
        eval_command.main(["--gates", str(copy)])
    with pytest.raises(UserError, match="cannot be read"):
        eval_command.main(["--gates", str(bundle.parent / "no-such-bundle"), "--device", "cpu"])
    with pytest.raises(UserError, match="required: RUN"):
        eval_command.main([])


def test_a_bundle_of_another_run_is_refused(walker, standing, tmp_path):
    other = exporters.get("onnx")(walker[1], tmp_path / "other")
    with pytest.raises(UserError, match=r"config_sha256 is not that of the newest checkpoint"):
        eval_command.main([str(standing.path), "--gates", str(other), "--device", "cpu"])


def fake(passed, value=0.5, files=None):
    return Result(passed, value, 0.9, "share", files=files or {})


def test_marks_change_nothing_else_in_an_archive(walker, tmp_path):
    archive = exporters.get("jetson")(walker[1], tmp_path)
    with tarfile.open(archive) as packed:
        before = {member.name: packed.extractfile(member).read() for member in packed}
    mark(archive, {"parity": fake(False, math.nan, {"picture.png": b"x"})})
    assert read_bundle(archive).failed_gates
    with tarfile.open(archive) as packed:
        after = {member.name: packed.extractfile(member).read() for member in packed}
    changed = {name.partition("/")[2] for name in after if after[name] != before.get(name)}
    assert changed == {"contract.json", "SHA256SUMS", "FAILED_GATES", "picture.png"}
    assert read_bundle(archive).contract.raw["gates"]["parity"]["value"] is None  # NaN
    mark(archive, {"parity": fake(True)})
    assert not read_bundle(archive).failed_gates


def test_a_mark_is_taken_back_and_engines_stay(walker, tmp_path):
    folder = exporters.get("tensorrt")(walker[1], tmp_path / "out")
    (folder / "engines").mkdir()
    (folder / "engines/x.plan").write_bytes(b"engine")
    mark(folder, {"parity": fake(False)})
    assert read_bundle(folder).failed_gates
    mark(folder, {"parity": fake(True)})
    assert not read_bundle(folder).failed_gates
    assert not (folder / "FAILED_GATES").exists()
    assert (folder / "engines/x.plan").read_bytes() == b"engine"
    (folder / "policy.onnx").write_bytes(b"")
    with pytest.raises(RuntimeBundleError, match="SHA-256"):
        mark(folder, {"parity": fake(True)})


@pytest.mark.parametrize(
    ("value", "reference", "share"),
    [(90, 100, 0.9), (-110, -100, 0.9), (-100, 100, -1.0), (0, 0, 1.0), (-1, 0, -math.inf), (110, 100, 1.1)],
)
def test_shares_of_returns(value, reference, share):
    assert kept_share(value, reference) == pytest.approx(share)
