"""What a training reads is hashed when it starts and compared when it continues; a robot is also copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from envs_gpu.errors import ModelError
from envs_gpu.make import make_env
from envs_gpu.models import model_files
from envs_gpu.user_model import UserModel
from pi_incubator import checkpoint
from pi_incubator.checkpoint import Part
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.errors import UserError
from pi_incubator.inputs import read_inputs, with_absolute_paths
from pi_incubator.run_folder import RunFolder, begin, check_resume, open_run, place_of, with_own_model
from pi_incubator.scene import compare_scene, write_scene

ROBOT = """<mujoco>
  <compiler meshdir="parts"/>
  <include file="servo.xml"/>
  <asset><mesh name="link" file="link.obj"/></asset>
  <worldbody><body><joint name="j" type="hinge"/><geom type="mesh" mesh="link"/></body></worldbody>
</mujoco>"""
SERVO = '<mujoco><actuator><position joint="j" ctrlrange="-1 1"/></actuator></mujoco>'
TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 1 4 3\n"


@pytest.fixture
def robot(tmp_path: Path) -> Path:
    """An MJCF file with an included file and a mesh, and a file beside it that it does not read."""
    root = tmp_path / "robot"
    (root / "parts").mkdir(parents=True)
    (root / "arm.xml").write_text(ROBOT)
    (root / "servo.xml").write_text(SERVO)
    (root / "parts" / "link.obj").write_text(TETRAHEDRON)
    (root / "readme.txt").write_text("not read")
    return root / "arm.xml"


def make_config(output_dir: Path, model: str | Path, **settings: Any) -> ExperimentConfig:
    sections = {
        "experiment": {"name": "run", "output_dir": str(output_dir)},
        "env": {"name": "hold_pose", "model": str(model)},
    }
    return with_absolute_paths(ExperimentConfig.model_validate(sections | settings))


def leave_run(cfg: ExperimentConfig) -> RunFolder:
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True, exist_ok=True)
    begin(cfg, folder)
    checkpoint.save(folder, 1, 10, {"policy": Part(torch.nn.Linear(1, 1))}, cfg, keep=3)
    return folder


def test_the_files_of_a_model_are_those_that_it_reads(robot: Path) -> None:
    assert model_files(robot) == {
        ".": robot,
        "parts/link.obj": robot.parent / "parts" / "link.obj",
        "servo.xml": robot.parent / "servo.xml",
    }


def test_a_run_keeps_its_robot_and_is_opened_anywhere(
    tmp_path: Path, robot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is resolved at the start; the original is not needed any more afterwards."""
    monkeypatch.chdir(robot.parent)
    folder = leave_run(make_config(tmp_path / "runs", "arm.xml"))
    copies = {str(path.relative_to(folder.model)) for path in folder.model.rglob("*") if path.is_file()}
    assert copies == {"arm.xml", "servo.xml", "parts/link.obj"}
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(robot.parent)
    (tmp_path / "runs").rename(tmp_path / "archive")
    moved = RunFolder(tmp_path / "archive" / "run")
    cfg, _ = open_run(str(moved.path))
    assert cfg.env.model == str(moved.model / "arm.xml")
    assert Path(cfg.env.model).is_file()
    again = load_config(moved.config, place_of(moved.config, []))
    assert again.run_dir == moved.path
    assert check_resume(again, moved) is True
    assert begin(again, moved) is True
    assert open_run(str(moved.path))[0].env.model == str(moved.model / "arm.xml")


@pytest.mark.parametrize("file", ["arm.xml", "servo.xml", "parts/link.obj"])
def test_a_changed_robot_is_named(tmp_path: Path, robot: Path, file: str) -> None:
    """Included files and meshes count, files that are not read do not."""
    cfg = make_config(tmp_path / "runs", robot)
    folder = leave_run(cfg)
    (robot.parent / "readme.txt").write_text("changed")
    assert check_resume(cfg, folder) is True
    changed = robot.parent / file
    changed.write_text(changed.read_text() + "\n")
    with pytest.raises(ConfigError) as error:
        check_resume(cfg, folder)
    message = str(error.value)
    assert f"env.model = '{robot}': {changed} is not what the run began with; restore it" in message
    assert f"set this to the run's own copy {folder.model / 'arm.xml'}" in message
    assert "experiment.name" in message
    assert "\n" not in message
    assert check_resume(make_config(tmp_path / "runs", folder.model / "arm.xml"), folder) is True
    never = make_config(tmp_path / "runs", robot, checkpoint={"resume": "never"})
    assert begin(never, folder) is False  # a new run may have another robot
    assert check_resume(make_config(tmp_path / "runs", robot), folder) is False


def test_a_file_more_is_a_change_too(tmp_path: Path, robot: Path) -> None:
    cfg = make_config(tmp_path / "runs", robot)
    folder = leave_run(cfg)
    robot.with_name("extra.xml").write_text("<mujoco/>")
    robot.with_name("servo.xml").write_text(f'<mujoco><include file="extra.xml"/>{SERVO[8:]}')
    with pytest.raises(ConfigError, match=r"extra\.xml is not what the run began with"):
        check_resume(cfg, folder)


def test_the_same_robot_elsewhere_continues(tmp_path: Path, robot: Path) -> None:
    """Its content counts, not its place; and the run goes on with its own copy."""
    folder = leave_run(make_config(tmp_path / "runs", robot))
    robot.parent.rename(tmp_path / "moved")
    (tmp_path / "moved" / "arm.xml").rename(tmp_path / "moved" / "other_name.xml")
    cfg = make_config(tmp_path / "runs", tmp_path / "moved" / "other_name.xml")
    assert check_resume(cfg, folder) is True
    assert with_own_model(cfg, folder).env.model == str(folder.model / "arm.xml")


def test_a_damaged_copy_is_refused_by_readers(tmp_path: Path, robot: Path) -> None:
    """A policy is not judged on another robot than it was trained on."""
    folder = leave_run(make_config(tmp_path / "runs", robot))
    copy = folder.model / "servo.xml"
    copy.write_text(copy.read_text().replace("-1 1", "-9 9"))
    with pytest.raises(ConfigError, match=r"servo\.xml is not what the run began with; restore it"):
        open_run(str(folder.path))


def test_a_new_run_may_use_the_old_runs_copy(tmp_path: Path, robot: Path) -> None:
    """The copy is made before the old run is moved aside with its own."""
    folder = leave_run(make_config(tmp_path / "runs", robot))
    own = folder.model / "arm.xml"
    assert begin(make_config(tmp_path / "runs", own, checkpoint={"resume": "never"}), folder) is False
    assert own.read_text() == (folder.previous / "001" / "model" / "arm.xml").read_text() == ROBOT


def test_a_folder_model_that_is_not_the_runs_is_left_alone(tmp_path: Path, robot: Path) -> None:
    shutil.copytree(robot.parent, tmp_path / "runs" / "run" / "model")
    mine = tmp_path / "runs" / "run" / "model" / "arm.xml"
    cfg = make_config(tmp_path / "runs", mine)
    with pytest.raises(UserError, match=r"model: is in the way of the run's copy of env\.model; rename it"):
        begin(cfg, RunFolder(cfg))
    assert mine.read_text() == ROBOT
    assert [path.name for path in cfg.run_dir.iterdir()] == ["model"]


def student_config(output_dir: Path, **algorithm: Any) -> ExperimentConfig:
    sections = {
        "experiment": {"name": "student", "output_dir": str(output_dir)},
        "algorithm": {"name": "distillation", **algorithm},
    }
    return with_absolute_paths(ExperimentConfig.model_validate(sections))


def test_a_teacher_that_was_trained_on_is_named(tmp_path: Path, robot: Path) -> None:
    """A student goes on with the teachers, and the demonstrations, that it began with."""
    teacher_cfg = make_config(tmp_path / "teachers", robot)
    teacher, dataset = leave_run(teacher_cfg), tmp_path / "steps"
    dataset.write_text("steps")
    cfg = student_config(tmp_path / "runs", teachers=[str(teacher.path)], dataset=str(dataset))
    folder = leave_run(cfg)
    assert check_resume(cfg, folder) is True
    (tmp_path / "teachers").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved" / "run")
    cfg = student_config(tmp_path / "runs", teachers=[moved], dataset=str(dataset))
    assert check_resume(cfg, folder) is True
    dataset.write_text("other steps")
    with pytest.raises(
        ConfigError, match=r"algorithm\.dataset = '.*steps': .*steps is not what the run began"
    ):
        check_resume(cfg, folder)
    dataset.write_text("steps")
    checkpoint.save(RunFolder(moved), 2, 20, {"policy": Part(torch.nn.Linear(1, 1))}, teacher_cfg, keep=3)
    with pytest.raises(ConfigError, match=r"algorithm\.teachers = .*policy\.safetensors is not what the run"):
        check_resume(cfg, folder)
    without = student_config(tmp_path / "runs", teachers=[moved])
    with pytest.raises(ConfigError, match=r"algorithm\.(dataset|teachers)"):
        check_resume(without, folder)


def test_the_list_of_inputs_is_checked(tmp_path: Path, robot: Path) -> None:
    """Damage of `inputs.json` is one line; a run that has none is not refused."""
    cfg = make_config(tmp_path / "runs", robot)
    folder = leave_run(cfg)
    assert set(read_inputs(folder)["env.model"][0].files) == {".", "servo.xml", "parts/link.obj"}
    for content, problem in (("{", "is damaged"), ("[]", "is damaged"), ('{"format": 9}', "has format 9")):
        folder.inputs.write_text(content)
        with pytest.raises(UserError, match=problem):
            check_resume(cfg, folder)
    assert json.loads(folder.inputs.read_text()) == {"format": 9}
    folder.inputs.unlink()
    assert check_resume(make_config(tmp_path / "runs", folder.model / "arm.xml"), folder) is True


def beside(robot: Path) -> Path:
    """The robot with its mesh in a folder beside its own: `../meshes/link.obj`."""
    (robot.parents[1] / "meshes").mkdir()
    (robot.parent / "parts" / "link.obj").rename(robot.parents[1] / "meshes" / "link.obj")
    robot.write_text(ROBOT.replace('meshdir="parts"', 'meshdir="../meshes"'))
    return robot


def test_a_robot_that_reads_beside_its_folder_is_copied_whole(tmp_path: Path, robot: Path) -> None:
    """The copy has the layout of the original, is trusted as a whole, and is moved with the run."""
    root = beside(robot).parents[1]
    settings = {"name": "hold_pose", "model": str(robot), "model_root": str(root)}
    cfg = make_config(tmp_path / "runs", robot, env=settings)
    folder = leave_run(cfg)
    assert check_resume(cfg, folder) is True
    shutil.rmtree(robot.parent)
    shutil.rmtree(root / "meshes")
    moved = RunFolder(folder.path.rename(tmp_path / "moved"))
    opened, _ = open_run(str(moved.path))
    assert opened.env.model == str(moved.model.absolute() / "robot" / "arm.xml")
    assert opened.env.model_root == str(moved.model.absolute())
    assert (moved.model / "meshes" / "link.obj").read_text() == TETRAHEDRON
    assert model_files(opened.env.model, opened.env.model_root).keys() == {
        ".",
        "servo.xml",
        "../meshes/link.obj",
    }


@pytest.fixture
def linked(robot: Path) -> Path:
    """The robot with its mesh as `link/../link.obj`, where `link` leads to another folder."""
    (robot.parent / "store" / "deep").mkdir(parents=True)
    (robot.parent / "parts" / "link.obj").rename(robot.parent / "store" / "link.obj")
    (robot.parent / "link").symlink_to("store/deep")
    robot.write_text(ROBOT.replace(' meshdir="parts"', "").replace("link.obj", "link/../link.obj"))
    return robot


def test_a_file_behind_a_link_and_two_dots_is_copied(
    tmp_path: Path, linked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system follows the link before it goes up; the copy has no links, and reads the same."""
    cfg = make_config(tmp_path / "runs", linked)
    folder = leave_run(cfg)
    opened, _ = open_run(str(folder.path))
    assert opened.env.model == str(folder.model / "arm.xml")
    files = model_files(opened.env.model)
    assert files["link.obj"].read_text() == TETRAHEDRON
    assert not any(path.is_symlink() for path in folder.model.rglob("*"))
    UserModel(opened.env.model).check()
    assert check_resume(cfg, folder) is True
    assert check_resume(make_config(tmp_path / "runs", folder.model / "arm.xml"), folder) is True
    (linked.parent / "store" / "link.obj").write_text(TETRAHEDRON + "\n")
    capsys.readouterr()
    open_run(str(folder.path))
    assert "link.obj has changed since the run began" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"link/\.\./link\.obj is not what the run began with"):
        check_resume(cfg, folder)


def test_two_files_that_would_be_one_in_the_copy_are_refused(linked: Path) -> None:
    (linked.parent / "link.obj").write_text(TETRAHEDRON)
    other = '<mesh name="other" file="link.obj"/></asset>'
    linked.write_text(linked.read_text().replace("</asset>", other))
    UserModel(str(linked)).check()  # MuJoCo can tell them apart
    with pytest.raises(
        ModelError, match=r'arm\.xml, line 4, <mesh .*file="link\.obj": would be one file with'
    ):
        model_files(linked)


@pytest.mark.parametrize("folder", ["empty/..", "../robot", "../../{root}/robot/empty/../parts/.."])
def test_a_path_that_leaves_a_folder_again_is_found_in_the_copy(
    tmp_path: Path, robot: Path, folder: str
) -> None:
    """The folder that is left has nothing that is read, and is there in the copy."""
    (robot.parent / "empty").mkdir()
    path = f"{folder.format(root=tmp_path.name)}/parts/link.obj"
    robot.write_text(ROBOT.replace(' meshdir="parts"', "").replace("link.obj", path))
    settings = {"name": "hold_pose", "model": str(robot), "model_root": str(tmp_path.parent)}
    folder_of_run = leave_run(make_config(tmp_path / "runs", robot, env=settings))
    shutil.rmtree(robot.parent)
    opened, _ = open_run(str(folder_of_run.path))
    assert opened.env.model is not None
    UserModel(opened.env.model, opened.env.model_root).check()


def test_a_copy_that_fails_is_not_told_as_an_older_run(
    tmp_path: Path, robot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run that is there stays as it was."""
    folder = leave_run(make_config(tmp_path / "runs", robot))
    before = sorted(folder.path.rglob("*"))

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(
        UserError, match=r"^env\.model = '.*arm\.xml': cannot be copied .*No space left"
    ) as error:
        begin(make_config(tmp_path / "runs", robot, checkpoint={"resume": "never"}), folder)
    assert "older run" not in str(error.value)
    assert sorted(folder.path.rglob("*")) == before


def test_a_changed_original_is_told_and_the_copy_is_used(
    tmp_path: Path, robot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = leave_run(make_config(tmp_path / "runs", robot))
    open_run(str(folder.path))
    assert capsys.readouterr().err == ""
    robot.with_name("servo.xml").write_text(SERVO.replace("-1 1", "-9 9"))
    cfg, _ = open_run(str(folder.path))
    assert cfg.env.model == str(folder.model / "arm.xml")
    told = capsys.readouterr().err
    assert f"{robot.with_name('servo.xml')} has changed since the run began; the run's own copy" in told
    assert told.count("\n") == 1


def test_a_scene_that_differs_is_told_by_its_fields(tmp_path: Path, robot: Path) -> None:
    """Also where no file of the run has changed: a robot of a package, a task's code."""
    folder = RunFolder(tmp_path)
    first, heavier = (
        make_env("hold_pose", num_envs=1, device=torch.device("cpu"), model=str(robot)) for _ in range(2)
    )
    assert compare_scene(folder, first) == []  # nothing is written down yet
    write_scene(folder, first)
    assert compare_scene(folder, first) == []
    assert compare_scene(folder, heavier) == []
    heavier.compiled_model.body_mass[1] *= 1 + 1e-13
    assert compare_scene(folder, heavier) == []
    heavier.compiled_model.body_mass[1] *= 1.01
    heavier.compiled_model.opt.timestep = 0.001
    assert compare_scene(folder, heavier) == [
        "warning: the scene is not what the run began with: body_mass, opt.timestep differ"
    ]
    folder.scene.write_text("{")
    with pytest.raises(UserError, match=r"scene\.json: is damaged .*; restore it from a copy, or remove it"):
        compare_scene(folder, first)
