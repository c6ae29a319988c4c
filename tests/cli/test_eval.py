"""`pi-eval` and `pi-export` on a small run, and what they say about bad input."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pi_incubator import checkpoint
from pi_incubator.algorithms import make_policy
from pi_incubator.checkpoint import Part
from pi_incubator.checkpoint_files import manifest_text
from pi_incubator.cli import eval as eval_command
from pi_incubator.cli import export as export_command
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy import record
from pi_incubator.envs import evaluation_env
from pi_incubator.errors import UserError
from pi_incubator.finish import finish_run
from pi_incubator.run_folder import RunFolder, begin
from pi_incubator.runtime import read_bundle
from pi_incubator.tracking import Tracker

ROOT = Path(__file__).parents[2]


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return ExperimentConfig.model_validate(
        {
            "experiment": {"name": "balance", "output_dir": str(tmp_path_factory.mktemp("runs"))},
            "env": {"name": "cartpole_balance", "num_envs": 8},
            "evaluation": {"num_episodes": 3},
            "deployment": {"num_check_observations": 100},
            "compute": {"device": "cpu", "physics_threads": 1},
        }
    )


class RecordingTracker(Tracker):
    def __init__(self):
        self.artifacts = []

    def log_artifact(self, path):
        assert path.is_file()
        self.artifacts.append(path.name)


@pytest.fixture(scope="module")
def finished(cfg):
    """A run that was never trained, and finished."""
    with RunFolder(cfg) as folder:
        begin(cfg, folder)
        env = evaluation_env(cfg, cfg.env.num_envs, torch.device("cpu"))
        policy = make_policy(cfg, env.spec)
        checkpoint.save(folder, 0, cfg.steps_per_iteration, {"policy": Part(policy)}, cfg, keep=1)
        log = {"iteration": 0, "env_steps": cfg.steps_per_iteration, "wall_s": 1.5, "episode/return": 100.0}
        folder.metrics.write_text(json.dumps(log) + "\n")
        tracker = RecordingTracker()
        finish_run(cfg, folder, env, policy, tracker)
        env.close()
    return folder, tracker


def test_finish_leaves_every_file_and_logs_it(finished):
    folder, tracker = finished
    assert tracker.artifacts == ["config.yaml", "evaluation.json", "policy.onnx", "curve.png"]
    summary = json.loads(folder.evaluation.read_text())
    assert summary["return"].keys() == {"mean", "std", "min", "max"}
    assert summary["length"]["mean"] == 1000


def test_eval_repeats_the_evaluation_of_the_run(finished, tmp_path, capsys):
    folder, _ = finished
    eval_command.main([str(folder.path), "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(folder.evaluation.read_text())
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("return", "length", "mean", "std", "min", "max", "3 episodes"))


def test_eval_of_the_exported_policy_agrees(finished, tmp_path):
    folder, _ = finished
    arguments = [str(folder.path), "--episodes", "1", "--backend", "mujoco", "--seed", "5", "--json"]
    eval_command.main([*arguments, str(tmp_path / "torch.json")])
    eval_command.main([*arguments, str(tmp_path / "onnx.json"), "--onnx"])
    torch_return, onnx_return = (
        json.loads((tmp_path / name).read_text())["return"]["mean"] for name in ("torch.json", "onnx.json")
    )
    assert onnx_return == pytest.approx(torch_return, rel=1e-2)


def test_a_run_from_a_gpu_opens_on_the_cpu(finished, cfg, tmp_path):
    there = cfg.model_copy(
        update={
            "experiment": cfg.experiment.model_copy(update={"output_dir": str(tmp_path)}),
            "compute": cfg.compute.model_copy(update={"device": "cuda"}),
        }
    )
    folder = RunFolder(there)
    shutil.copytree(finished[0].path, folder.path)
    folder.config.write_text(folder.config.read_text().replace("device: cpu", "device: cuda"))
    assert "device: cuda" in folder.config.read_text()
    report = tmp_path / "report.json"
    eval_command.main([str(folder.path), "--device", "cpu", "--json", str(report)])
    assert json.loads(report.read_text()) == json.loads(finished[0].evaluation.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="here cuda is what was asked for")
def test_a_device_that_is_not_here_is_named(finished):
    for command in (eval_command, export_command):
        with pytest.raises(UserError, match=r"compute.device.*torch finds no CUDA device"):
            command.main([str(finished[0].path), "--device", "cuda"])


def test_export_writes_a_bundle_and_its_check(finished, tmp_path, capsys):
    folder, _ = finished
    out, report = tmp_path / "out", tmp_path / "report.json"
    export_command.main([str(folder.path), "--out", str(out), "--json", str(report)])
    result = json.loads(report.read_text())
    assert {path.name for path in out.iterdir()} == {"policy.onnx", "contract.json", "SHA256SUMS"}
    assert (out / "policy.onnx").read_bytes() == folder.onnx.read_bytes()
    assert result["onnx_bytes"] == folder.onnx.stat().st_size
    assert result["observations"] == 100
    assert result["max_action_error"] <= 1e-5
    summary = json.loads(folder.evaluation.read_text())
    assert result["return"] == result["return_fp32"] == pytest.approx(summary["return"]["mean"], rel=1e-2)
    assert read_bundle(out).contract.raw["training_return"] == pytest.approx(summary["return"]["mean"])
    assert "max_action_error" in capsys.readouterr().out


def test_an_export_beside_training_is_of_one_checkpoint(finished, cfg, tmp_path, monkeypatch):
    """Weights, hash and return belong together, also when training saves while the policy is exported."""
    run = tmp_path / "balance"
    shutil.copytree(finished[0].path, run)
    folder = RunFolder(run)
    exported = checkpoint.latest(folder)
    plain = record.record

    def recording(env, policy, *arguments):
        trained = make_policy(cfg, env.spec)
        checkpoint.save(folder, 1, 2 * cfg.steps_per_iteration, {"policy": Part(trained)}, cfg, keep=1)
        return plain(env, policy, *arguments)

    monkeypatch.setattr(record, "record", recording)
    export_command.main([str(run), "--episodes", "1"])
    assert folder.saved()[-1].name == "iter_00000001"
    contract = read_bundle(folder.export("onnx")).contract.raw
    assert contract["policy_sha256"] == exported.files["policy.safetensors"]
    assert contract["training_return"] == pytest.approx(
        json.loads(folder.evaluation.read_text())["return"]["mean"], rel=1e-2
    )
    export_command.main([str(run), "--episodes", "1"])
    again = read_bundle(folder.export("onnx")).contract.raw
    assert again["policy_sha256"] != contract["policy_sha256"]
    assert again["training_return"] is None  # that of the checkpoint before is not its own


def test_eval_judges_the_file_it_is_given(finished, tmp_path):
    folder, _ = finished
    arguments = ["--precision", "int8", "--episodes", "1", "--out", str(tmp_path / "out")]
    export_command.main([str(folder.path), *arguments])
    report, file = tmp_path / "report.json", tmp_path / "out" / "policy.onnx"
    eval_command.main([str(folder.path), "--episodes", "1", "--onnx", str(file), "--json", str(report)])
    assert json.loads(report.read_text())["return"]["mean"] > 0


def test_export_overwrites_bundles_and_nothing_else(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is of no bundle; name another folder"):
        export_command.main([str(folder.path), "--episodes", "1", "--out", str(tmp_path)])
    assert (tmp_path / "thesis.tex").is_file()


def test_a_checkpoint_without_a_normalizer_is_refused(finished, tmp_path):
    folder, _ = finished
    other = tmp_path / folder.path.name
    shutil.copytree(folder.path, other)
    file = next(other.glob("checkpoints/*/policy.safetensors"))
    state = {name: value for name, value in load_file(file).items() if "normalizer" not in name}
    save_file(state, file)
    manifest = file.parent / checkpoint.MANIFEST
    written = json.loads(manifest.read_text())
    del written["sha256"]
    written["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.write_text(manifest_text(written))
    with pytest.raises(UserError, match=r"has nothing for 'normalizer\.policy\.mean'"):
        export_command.main([str(other)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: RUN"),
        (["{runs}/balence"], "did you mean .*balance"),
        (["{runs}/balance/config.yaml"], "no run folder"),
        (["{runs}/balance", "--backend", "mujco"], "did you mean mujoco"),
        (["{runs}/balance", "--episodes", "0"], "at least 1"),
        (["{runs}/balance", "--json", "{runs}/nowhere/a.json"], "existing folder"),
        (["{runs}/balance", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_input_is_named(finished, arguments, message):
    folder, _ = finished
    with pytest.raises(UserError, match=message):
        eval_command.main([argument.format(runs=folder.path.parent) for argument in arguments])


def test_a_run_without_checkpoint_or_export_is_named(cfg, tmp_path):
    elsewhere = cfg.experiment.model_copy(update={"output_dir": str(tmp_path)})
    begin_only = cfg.model_copy(update={"experiment": elsewhere})
    with RunFolder(begin_only) as folder:
        begin(begin_only, folder)
    for command in (eval_command, export_command):
        with pytest.raises(UserError, match="no checkpoint"):
            command.main([str(folder.path)])
    (folder.checkpoints / "iter_00000000").mkdir(parents=True)
    with pytest.raises(UserError, match=r"write it with pi-export"):
        eval_command.main([str(folder.path), "--onnx"])


@pytest.mark.parametrize("command", ["eval", "export"])
def test_a_mistake_is_one_line_at_once_and_exit_code_2(command):
    began_s = time.perf_counter()
    done = run_python("-m", f"pi_incubator.cli.{command}", "no/such/run")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no/such/run: is no run folder")
    assert done.stderr.count("\n") == 1
    assert time.perf_counter() - began_s < 5  # torch alone can take longer to import on a busy machine


@pytest.mark.parametrize("command", ["eval", "export"])
def test_mistakes_are_found_before_slow_imports(command):
    script = f"""
import sys
from pi_incubator.cli.{command} import main
from pi_incubator.errors import UserError
try:
    main(["no/such/run"])
except UserError:
    print(sorted({{"torch", "mujoco", "mlflow", "onnxruntime", "matplotlib"}} & sys.modules.keys()))
"""
    done = run_python("-c", script)
    assert done.stdout.strip() == "[]"
