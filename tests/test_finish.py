"""What a run leaves where its end goes wrong."""

import json
from pathlib import Path

import pytest

import pi_incubator
from pi_incubator import finish
from pi_incubator.errors import UserError
from tests.mjcf import EXPLODES

CONFIG = Path(__file__).parents[1] / "configs" / "ppo" / "hold_pose.yaml"
SETTINGS = (
    *("env.num_envs=8", "algorithm.horizon=4", "algorithm.minibatch_size=16", "algorithm.num_epochs=1"),
    *("training.total_steps=32", "tracking.backend=none", "compute.compile=off", "compute.device=cpu"),
    *("evaluation.num_episodes=1", "evaluation.video=true", "evaluation.video_length_s=0.1"),
    *("guards.max_broken_share=1", "experiment.name=run", "deployment.num_check_observations=20"),
)


def test_a_failed_export_loses_nothing_else(tmp_path, monkeypatch, capsys):
    """Evaluation, curve, video, MuJoCo's log and summary are there; then the run ends with what was wrong."""

    def fails(*_):
        raise UserError("policy.onnx: its actions differ from the policy's; do not deploy this file")

    robot, cwd = tmp_path / "robot.xml", tmp_path / "cwd"
    robot.write_text(EXPLODES)
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(finish, "record", fails)
    with pytest.raises(UserError, match=r"policy\.onnx: its actions differ"):
        pi_incubator.run(CONFIG, [*SETTINGS, f"env.model={robot}", f"experiment.output_dir={tmp_path}"])
    folder = tmp_path / "run"
    assert not (folder / "policy.onnx").exists()
    for name in ("evaluation.json", "curve.png", "video.mp4", "metrics.jsonl", "MUJOCO_LOG.TXT"):
        assert (folder / name).stat().st_size > 0
    assert not list(cwd.iterdir())
    assert " times in all: " in (folder / "MUJOCO_LOG.TXT").read_text()
    assert list((folder / "checkpoints").iterdir())
    assert "trained in" in capsys.readouterr().out


@pytest.mark.slow
def test_an_old_export_never_lies_beside_a_newer_evaluation(tmp_path, monkeypatch):
    """A continued run sets it aside under another name, and deletes it once the new one is written."""
    place = f"experiment.output_dir={tmp_path}"
    folder = tmp_path / "run"
    cartpole = CONFIG.with_name("cartpole_balance.yaml")
    quick = [*SETTINGS, "evaluation.video=false", place]
    pi_incubator.run(cartpole, [*quick, "deployment.export=none"])
    first = b"the export of an earlier end"
    (folder / "policy.onnx").write_bytes(first)

    def fails(*_):
        raise UserError("policy.onnx: its actions differ from the policy's; do not deploy this file")

    with monkeypatch.context() as patch:
        patch.setattr(finish, "record", fails)
        with pytest.raises(UserError, match="its actions differ"):
            pi_incubator.run(cartpole, [*quick, "training.total_steps=64"])
    evaluated = json.loads((folder / "evaluation.json").read_text())
    assert evaluated["checkpoint"] == {"iteration": 1, "env_steps": 64}
    assert not (folder / "policy.onnx").exists()
    assert (folder / "policy.old.onnx").read_bytes() == first
    pi_incubator.run(cartpole, [*quick, "training.total_steps=96"])
    assert (folder / "policy.onnx").read_bytes() != first
    assert not (folder / "policy.old.onnx").exists()
