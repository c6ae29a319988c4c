"""Pictures show the robot on its ground, wherever it went."""

import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import mujoco
import numpy as np
import pytest
import torch

from envs_gpu import render
from envs_gpu.make import make_env
from envs_gpu.render import Renderer, RenderError
from envs_gpu.tasks import TASKS
from pi_incubator.evaluation.video import record_video

ROOT = Path(__file__).parents[2]
SIZE = {"width": 160, "height": 120}
DRAW = """
import mujoco
from envs_gpu.render import Renderer, RenderError
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
try:
    print(Renderer(model, 16, 8).render(model.qpos0).shape)
except RenderError as error:
    print(error)
"""


def open_renderer(model, **arguments):
    try:
        return Renderer(model, **SIZE, **arguments)
    except RenderError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ant():
    env = make_env("ant", num_envs=2, device=torch.device("cpu"))
    yield env
    env.close()


def is_ant_coloured(picture):
    """Where it is much more red than blue; the ground and the sky are not."""
    return picture[..., 0].astype(int) - picture[..., 2] > 40


def test_the_camera_follows_and_the_ground_comes_along(ant):
    renderer = open_renderer(ant.physics.model)
    qpos = ant.physics.model.qpos0.copy()
    here = renderer.render(qpos)
    qpos[:2] = (300.0, -200.0)
    far = renderer.render(qpos)
    renderer.close()
    assert here.shape == (120, 160, 3)
    assert here.dtype == np.uint8
    for picture in (here, far):
        rows, columns = np.nonzero(is_ant_coloured(picture))
        assert 0.02 < len(rows) / picture[..., 0].size < 0.5
        assert abs(columns.mean() - 80) < 20
        assert abs(rows.mean() - 60) < 20
        assert np.ptp(picture[-20:].mean(-1)) > 30  # the checker in the foreground
    # A whole number of tiles away everything looks the same.
    assert np.abs(here.astype(int) - far).mean() < 2


def test_the_model_is_not_changed_and_nan_is_drawn(ant):
    model = ant.physics.model
    before = model.geom_size.copy(), model.tex_data.copy(), model.light_dir.copy()
    renderer = open_renderer(model)
    initial = renderer.render(model.qpos0)
    assert np.array_equal(renderer.render(np.full(model.nq, np.nan)), initial)
    renderer.close()
    for old, new in zip(before, (model.geom_size, model.tex_data, model.light_dir), strict=True):
        assert np.array_equal(old, new)


def test_an_unknown_camera_is_named(ant):
    with pytest.raises(ValueError, match=r"camera 'nose'.*follow, track"):
        open_renderer(ant.physics.model, camera="nose")


@pytest.mark.parametrize("task", TASKS.names())
def test_every_task_can_be_drawn(task):
    env = make_env(task, num_envs=1, device=torch.device("cpu"))
    renderer = open_renderer(env.physics.model)
    picture = renderer.render(env.physics.state.qpos[0].numpy())
    renderer.close()
    env.close()
    assert picture.std() > 5  # neither black nor blank


def test_video_of_two_worlds(ant, tmp_path):
    open_renderer(ant.physics.model).close()
    path = tmp_path / "ant.mp4"
    still = torch.zeros(2, ant.spec.action_dim)
    record_video(ant, lambda obs: still, path, length_s=0.5, seed=0, num_worlds=2, **SIZE)
    properties, *frames = imageio_ffmpeg.read_frames(str(path))
    assert properties["size"] == (320, 120)
    assert properties["fps"] == ant.spec.control_hz
    assert len(frames) == 10
    last = np.frombuffer(frames[-1], dtype=np.uint8).reshape(120, 320, 3)
    assert all(is_ant_coloured(half).any() for half in np.split(last, 2, axis=1))


def test_without_a_driver_there_is_a_reason_and_mujoco_still_works():
    script = """
import sys
sys.modules["mujoco.egl"] = None
from envs_gpu import render
from envs_gpu.make import make_env
from envs_gpu.render import Renderer, RenderError
import torch
env = make_env("cartpole_balance", num_envs=1, device=torch.device("cpu"))
try:
    Renderer(env.physics.model)
except RenderError as error:
    print(error)
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no OpenGL driver works here")
    assert done.stdout.count("\n") == 1


def test_a_screen_that_does_not_answer_is_no_obstacle_to_egl(monkeypatch):
    """Old terminal multiplexers, ssh and containers leave a DISPLAY behind."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("DISPLAY", ":99")
    asked = []

    class Context:
        _context = None  # what GLFW leaves where there is no screen

        def __init__(self, name):
            asked.append(name)
            if name == "mujoco.egl":
                raise OSError("EGL is not here")

    class Module:
        def __init__(self, name):
            self.GLContext = lambda width, height: Context(name)

    monkeypatch.setattr(render, "import_module", Module)
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    with pytest.raises(RenderError, match=r"\(no screen answers; EGL is not here\); install EGL"):
        render.make_drawing_context(model, 8, 8)
    assert asked == ["mujoco.gl_context", "mujoco.egl"]


def test_a_picture_is_drawn_although_a_screen_does_not_answer():
    """In a process of its own, because MuJoCo ends one that asks for a context in the wrong way."""
    script = [sys.executable, "-c", DRAW]
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    ended = subprocess.run(
        script, cwd=ROOT, env=environment | {"DISPLAY": ":99"}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(("(8, 16, 3)", "no OpenGL driver works here (no screen answers; "))
    assert ended.stderr == ""
