"""What MuJoCo would take in silence, or say unclearly, about an MJCF file is one clear line here."""

import re
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.errors import EnvError, ModelChoiceError, ModelError
from envs_gpu.make import make_env
from envs_gpu.models import compile_model, load_model
from envs_gpu.observation import ObservationTerm
from envs_gpu.robots import ROBOTS, gymnasium_model, robot_model
from envs_gpu.tasks import hold_pose
from envs_gpu.tasks.cartpole_balance import CartpoleBalance
from pi_incubator.cli import _main, train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
GOOD = """<mujoco>
  <option timestep="0.002"/>
  <asset><!--asset--></asset>
  <worldbody>
    <body name="link" pos="0 0 1">
      <joint name="hinge"/>
      <geom name="rod" size="0.1"/>
    </body>
  </worldbody>
  <actuator><motor name="pull" joint="hinge" ctrlrange="-1 1"/></actuator>
  <!--end-->
</mujoco>
"""
TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"

# What is put in place of what, and what the error has to say: element and line, problem, and what to do.
MISTAKES = {
    "timestep of zero": ('timestep="0.002"', 'timestep="0"', 'line 2, <option> timestep="0": not above zero'),
    "negative timestep": (
        'timestep="0.002"',
        'timestep="-1"',
        'line 2, <option> timestep="-1": not above zero',
    ),
    "nan timestep": ('timestep="0.002"', 'timestep="nan"', 'line 2, <option> timestep="nan": not a number'),
    "nan position": ("0 0 1", "nan 0 1", 'line 5, <body name="link"> pos="nan 0 1": not a number'),
    "format of C": (
        'size="0.1"',
        'size="0.1" class="%s%n"',
        'line 7, <geom name="rod"> class="%s%n": MuJoCo reads',
    ),
    "nan in capitals": ('size="0.1"', 'size="-NaN"', 'line 7, <geom name="rod"> size="-NaN": not a number'),
    "infinite position": ("0 0 1", "inf 0 1", "pos of body 'link' is inf; write a finite number"),
    "missing mesh": (
        "<!--asset-->",
        '<mesh name="m" file="no.stl"/>',
        "line 3, <mesh name=\"m\">: no file 'no.stl'",
    ),
    "missing include": ("<!--end-->", '<include file="no.xml"/>', "line 11, <include>: no file 'no.xml'"),
    "misspelt attribute": ("pos=", "poss=", "line 5, <body name=\"link\">: Schema violation: .* 'poss'"),
    "misspelt element": (
        "<!--end-->",
        "<sensr/>",
        "line 11, <sensr>: Schema violation: unrecognized element",
    ),
    "no number": ("0 0 1", "a b c", "line 5, <body name=\"link\">: bad format in attribute 'pos'"),
    "unknown joint": ('joint="hinge"', 'joint="hing"', "line 10, <motor name=\"pull\">: unknown .* 'hing'"),
    "unknown body": (
        "<!--end-->",
        '<sensor><framepos objtype="body" objname="lonk"/></sensor>',
        "line 11, <framepos>: unrecognized name 'lonk'",
    ),
    "no mass": ('size="0.1"', 'size="0.1" mass="0"', 'line 5, <body name="link">: mass and inertia'),
    "no actuators": (
        '<motor name="pull" joint="hinge" ctrlrange="-1 1"/>',
        "",
        "no actuators, so nothing to control; add an <actuator>",
    ),
    "actuator without limits": (' ctrlrange="-1 1"', "", "actuator 'pull' has no limits.*give it ctrlrange"),
    "infinite limits": ("-1 1", "-inf inf", "actuator 'pull' has ctrlrange=\"-inf inf\""),
    "not well-formed": ("</worldbody>", "", r"line 12: not well-formed XML \(mismatched tag\)"),
    "entity": ("<mujoco>", '<!DOCTYPE m [<!ENTITY a "1">]><mujoco>', "line 1: declares an XML entity"),
    "not MJCF": ("mujoco>", "sdf>", "line 1, <sdf> is not MJCF, .* nor URDF"),
}


def refusal(path):
    """What is said about a file, in one line that begins with its name."""
    with pytest.raises(ModelError) as caught:
        compile_model(load_model(path), str(path))
    message = str(caught.value)
    assert message.startswith(str(path.parent)), message
    assert "\n" not in message
    assert "; " in message  # what to do
    return message


def write(folder, text, name="robot.xml"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_told_in_one_line(tmp_path, mistake):
    before, after, expected = MISTAKES[mistake]
    assert GOOD.count(before) >= 1
    message = refusal(write(tmp_path, GOOD.replace(before, after)))
    assert re.search(expected, message), message


def test_the_model_without_mistakes_loads(tmp_path):
    model = compile_model(load_model(write(tmp_path, GOOD)), "robot")
    assert (model.nbody, model.nu) == (2, 1)


def test_what_is_no_file(tmp_path):
    assert "is a folder" in refusal(tmp_path / "." if tmp_path.is_dir() else tmp_path)
    assert "no such file" in refusal(tmp_path / "none.xml")
    assert "no such file" in refusal(tmp_path / ("long" * 100))
    assert "is empty" in refusal(write(tmp_path, ""))
    path = tmp_path / "binary.xml"
    path.write_bytes(bytes(range(256)))
    assert "not well-formed XML" in refusal(path)


def test_mistake_in_an_included_file_names_that_file(tmp_path):
    main = write(tmp_path, GOOD.replace("<!--end-->", '<include file="parts/sensors.xml"/>'))
    part = write(tmp_path, "<mujoco>\n<sensor>\n<gyro sit='x'/>\n</sensor>\n</mujoco>", "parts/sensors.xml")
    assert refusal(main).startswith(f"{part}, line 3, <gyro>: Schema violation")
    part.write_text("<mujoco>\n<worldbody><geom size='nan'/></worldbody></mujoco>")
    assert refusal(main).startswith(f'{part}, line 2, <geom> size="nan": not a number')


ROADS = [
    (kind, way)
    for kind in ("mesh", "texture", "hfield", "include", "model", "skin")
    for way in ("../", "absolute", "link", "folder", "backslash")
    # The compiler's assetdir does not concern included files.
    if way != "folder" or kind not in ("include", "model")
]


@pytest.mark.parametrize(("kind", "way"), ROADS)
def test_nothing_outside_of_the_models_folder_is_read(tmp_path, kind, way):
    """Whichever element asks for it, and by whichever road."""
    home = tmp_path / "home"
    secret = write(tmp_path, "<mujoco/>", "secret.xml")
    home.mkdir()
    (home / "link.xml").symlink_to(secret)
    roads = {
        "../": "../secret.xml",
        "absolute": str(secret),
        "link": "link.xml",
        "backslash": "..\\secret.xml",
    }
    file = roads.get(way, "secret.xml")
    folder = '<compiler assetdir=".."/>' if way == "folder" else ""
    tag = f'<{kind} file="{file}"/>'
    outer = {"include": "", "skin": "deformable"}.get(kind, "asset")
    tag = f"<{outer}>{tag}</{outer}>" if outer else tag
    message = refusal(write(home, GOOD.replace("<!--end-->", folder + tag)))
    assert f"leads out of the model's folder {home}" in message
    assert ("line 11, <compiler> assetdir" if way == "folder" else f"line 11, <{kind}> file") in message


def test_an_include_cannot_lead_out_step_by_step(tmp_path):
    write(tmp_path, "<mujoco/>", "secret.xml")
    write(tmp_path, '<mujoco><include file="../../secret.xml"/></mujoco>', "home/parts/a.xml")
    main = write(tmp_path / "home", GOOD.replace("<!--end-->", '<include file="parts/a.xml"/>'))
    assert refusal(main).startswith(
        f'{tmp_path}/home/parts/a.xml, line 1, <include> file="../../secret.xml": leads'
    )


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a.xml").symlink_to(tmp_path / "b.xml")
    (tmp_path / "b.xml").symlink_to(tmp_path / "a.xml")
    message = refusal(write(tmp_path, GOOD.replace("<!--end-->", '<include file="a.xml"/>')))
    assert "line 11, <include>" in message


def test_meshes_and_includes_below_the_model_are_read(tmp_path):
    write(tmp_path, TRIANGLE, "meshes/shape.obj")
    write(
        tmp_path, '<mujoco><asset><mesh name="m" file="../meshes/shape.obj"/></asset></mujoco>', "parts/a.xml"
    )
    text = GOOD.replace('size="0.1"', 'type="mesh" mesh="m"').replace(
        "<!--end-->", '<compiler meshdir="meshes"/><include file="parts/a.xml"/>'
    )
    model = compile_model(load_model(write(tmp_path, text)), "robot")
    assert model.nmesh == 1


@pytest.mark.parametrize("robot", ROBOTS.values(), ids=ROBOTS)
def test_robots_of_packages_load(robot):
    assert compile_model(robot_model(robot), robot.name).nu > 0


def test_gymnasiums_models_load():
    for name in ("ant", "half_cheetah", "humanoid"):
        expected = mujoco.MjModel.from_xml_path(
            str(Path(gymnasium.__file__).parent / f"envs/mujoco/assets/{name}.xml")
        )
        ours = compile_model(gymnasium_model(name), name)
        np.testing.assert_array_equal(ours.body_mass, expected.body_mass)


class Misnames(CartpoleBalance):
    """A task that asks its scene for what is not there."""

    def __init__(self, where):
        self.where = where

    def scene(self):
        spec = super().scene()
        frame, body = mujoco.mjtSensor.mjSENS_FRAMEPOS, mujoco.mjtObj.mjOBJ_BODY
        spec.add_sensor(
            name="place", type=frame, objtype=body, objname="poll" if self.where == "scene" else "pole"
        )
        return spec

    def bind(self, model, device):
        super().bind(model, device)
        if self.where == "bind":
            model.body("poll")

    def observation(self):
        place = self.sensor_reading("plays" if self.where == "observation" else "place")
        terms = (ObservationTerm("place", 3, self.read if self.where == "read" else place, "m"),)
        return {"policy": terms}

    def read(self, state, episode):
        return state.sensordata[:, self.sensor["plays"]]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("scene", "unrecognized name 'poll' of sensorized object"),
        ("bind", "names 'poll', which its scene does not have; did you mean 'pole'"),
        *(
            (where, "reads a sensor 'plays', which its scene does not have; did you mean 'place'")
            for where in ("observation", "read")
        ),
    ],
)
def test_a_task_that_misnames_a_sensor_or_body(monkeypatch, where, expected, compiled):
    monkeypatch.setattr("envs_gpu.make.make_task", lambda name, model=None, keyframe=None: Misnames(where))
    with pytest.raises(ModelError, match=expected):
        make_env("cartpole_balance", num_envs=1, device=CPU, compiled=compiled)


def test_a_robot_for_a_task_that_has_one():
    with pytest.raises(
        ModelChoiceError, match=r"env\.model = .*arm\.xml.: ant brings its own robot; set it to null"
    ):
        make_env("ant", num_envs=1, device=CPU, model=str(hold_pose.EXAMPLE))


COMMANDS = {
    "no robot": (
        ["env.name=hold_pose"],
        {},
        r"env\.model = null: hold_pose needs a robot; set it to the path",
    ),
    "a robot too many": (
        [f"env.model={hold_pose.EXAMPLE}"],
        {},
        r"env\.model = .*arm.xml': ant brings its own robot; set it to null",
    ),
    "no such file": (
        ["env.name=hold_pose", "env.model=none.xml"],
        {},
        r"command line: env\.model = 'none\.xml': no such file; name an MJCF file",
    ),
    "bad file": (
        ["env.name=hold_pose", "env.model={bad}"],
        {},
        'bad.xml, line 2, <option> timestep="0": not above',
    ),
    "robot not downloaded": (
        ["env.name=go1_velocity"],
        {"MENAGERIE_ROOT": "{empty}"},
        "set the .*MENAGERIE_ROOT",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_command_ends_with_one_line(tmp_path, case, monkeypatch, capfd):
    settings, environment, expected = COMMANDS[case]
    bad = write(tmp_path, GOOD.replace("0.002", "0"), "bad.xml")
    (tmp_path / "empty").mkdir()
    names = {"bad": bad, "empty": tmp_path / "empty"}
    settings = [setting.format(**names) for setting in settings]
    for key, value in environment.items():
        monkeypatch.setenv(key, value.format(**names))
    place = [f"experiment.output_dir={tmp_path}", "tracking.backend=none", "compute.device=cpu"]
    config = write(tmp_path, "{}", "a.yaml")
    with pytest.raises(SystemExit) as ended:
        _main.run(train.main, ["--config", str(config), *place, *settings])
    (message,) = capfd.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert re.search(expected, message), message


def test_errors_are_the_commands_to_print():
    assert issubclass(ModelError, EnvError)
