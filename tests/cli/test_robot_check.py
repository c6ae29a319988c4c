"""`pi-envs check --model` and `--models`: what is said of a robot is so, and a bad file costs one line."""

from __future__ import annotations

import json
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs_gpu.scene.contents import contents_of, tear_of
from pi_incubator.cli import envs
from pi_incubator.cli._main import run

ARM = """
<mujoco>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 .1"/>
    <body name="upper" pos="0 0 1">
      <joint name="shoulder" axis="0 1 0" damping="2"/>
      <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass="1"/>
      <body name="lower" pos=".3 0 0">
        <joint name="elbow" axis="0 1 0" damping="2"/>
        <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass=".5"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="shoulder servo" joint="shoulder" kp="400" ctrlrange="-1 1"/>
    <position name="elbow servo" joint="elbow" kp="200" ctrlrange="-2 2"/>
  </actuator>
</mujoco>
"""
LIMP = ARM.replace('kp="400"', 'kp=".001"').replace('kp="200"', 'kp=".001"')
LOOP = """
<mujoco>
  <worldbody>
    <body name="a"><joint name="x" type="slide" axis="1 0 0"/><geom size=".1"/></body>
    <body name="b" pos="1 0 0"><joint name="y" type="slide" axis="1 0 0"/><geom size=".1"/></body>
  </worldbody>
  <equality><connect body1="a" body2="b" anchor="0 0 0"/></equality>
</mujoco>
"""


def check(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(envs.main, ["check", *argv])
    return int(ended.value.code or 0)


@pytest.fixture
def arm(tmp_path: Path) -> Path:
    file = tmp_path / "arm.xml"
    file.write_text(ARM)
    return file


def test_the_report_counts_what_mujoco_compiled(arm: Path) -> None:
    model = mujoco.MjModel.from_xml_path(str(arm))
    found = contents_of(model)
    assert (found.num_bodies, found.num_dofs, found.joints) == (2, model.nv, {"hinge": 2})
    assert found.mass_kg == pytest.approx(1.5)
    assert [(one.name, one.drives, one.low, one.high) for one in found.actuators] == [
        ("shoulder servo", "joint shoulder", -1.0, 1.0),
        ("elbow servo", "joint elbow", -2.0, 2.0),
    ]


def test_a_torn_loop_is_measured() -> None:
    model = mujoco.MjModel.from_xml_string(LOOP)
    assert tear_of(model, np.array([0.0, 0.0])) == pytest.approx(0.0, abs=1e-12)
    assert tear_of(model, np.array([0.0, 0.25])) == pytest.approx(0.25)


def test_a_robot_is_shown_with_page_and_numbers(
    arm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, numbers = tmp_path / "arm.html", tmp_path / "arm.json"
    assert check("--model", str(arm), "--out", str(page), "--json", str(numbers)) == 0
    assert "zero action holds the pose" in capsys.readouterr().out
    assert "shoulder servo" in page.read_text()
    assert json.loads(numbers.read_text())["holds_pose"] is True


def test_a_robot_that_sinks_down_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "limp.xml"
    file.write_text(LIMP)
    assert check("--model", str(file)) == 0
    assert "zero action does NOT hold the pose" in capsys.readouterr().out


def test_a_robot_with_short_timesteps_is_held_for_as_many_of_them(
    arm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not for as long: the check of one with 0.1 ms would take a minute."""
    arm.write_text(ARM.replace("<mujoco>", '<mujoco><option timestep="0.0001"/>'))
    numbers = arm.with_suffix(".json")
    assert check("--model", str(arm), "--json", str(numbers)) == 0
    assert "after 0.2 s" in capsys.readouterr().out
    assert json.loads(numbers.read_text())["held_s"] == pytest.approx(2000 * 1e-4)


def test_settings_of_training_count(arm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm.write_text(ARM.replace(' ctrlrange="-2 2"', ""))
    assert check("--model", str(arm)) == 2
    assert "elbow servo" in capsys.readouterr().err
    limits = "env.limits={'elbow servo': [-3, 3]}"
    page = arm.with_suffix(".html")
    assert check("--model", str(arm), limits, "--out", str(page)) == 0
    assert "elbow servo [-3, 3]" in capsys.readouterr().out
    assert "<td>-3</td><td>3</td>" in page.read_text()


def test_physics_that_blows_up_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wild.xml"
    file.write_text(ARM.replace('damping="2"', 'damping="-2000"'))
    assert check("--model", str(file)) == 0
    out, err = capfd.readouterr()
    assert "BLEW UP" in out
    assert len([line for line in err.splitlines() if "MuJoCo" in line]) <= 4


@pytest.mark.slow
def test_an_engine_is_compared_with_c_mujoco(arm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--model", str(arm), "--backend", "warp") == 0
    assert "warp: runs, within the parity rule" in capsys.readouterr().out


def test_many_robots_are_sorted_by_what_became_of_them(
    arm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table names files as they were asked for, so that it says nothing about the machine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "still.xml").write_text("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
    file = tmp_path / "all.json"
    code = check("--models", "*.xml", "--train", "2048", "--json", str(file))
    assert code == 0, capsys.readouterr().out
    assert str(tmp_path) not in file.read_text()
    found = {one["file"]: one for one in json.loads(file.read_text())["robots"]}
    assert found["arm.xml"]["outcome"] == "trained"
    assert found["still.xml"]["outcome"] == "refused"
    assert "no actuators" in found["still.xml"]["reason"]


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ([], "nothing is named"),
        (["ant", "--model", "x.xml"], "exclude each other"),
        (["--models", "*.nothing"], "matches no file"),
        (["ant", "env.keyframe=1"], "settings go with --model and --models only"),
        (["ant", "--train", "5"], "--train: goes with --models only"),
        (["--model", "x.xml", "--out", "x.pdf"], "ends neither in .html nor in .png"),
        (["--model", "nowhere.xml"], "no such file"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(*argv) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert problem in errors[0]
