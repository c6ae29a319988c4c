"""Pictures of a world, without a screen."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

FOLLOW = "follow"
# Seen from behind and the side, looking down a little: the ground shows the speed, the legs their gait.
AZIMUTH_DEG, ELEVATION_DEG = 130.0, -20.0
DISTANCE_IN_RADII = 3.5
# Side of the ground's repeated pattern; a checker's square is half of it, so that pictures have a scale.
TILE_M = 1.0
LIGHT_DIRECTION = (0.32, 0.23, -0.92)
BRIGHTEST = 0.8  # all lights together
GROUND_M = 40.0
SHADOW_PIXELS, SHADOW_RADII = 1024, 6.0
GROUND_CONTRAST = 0.4


class RenderError(RuntimeError):
    """Nothing can be drawn here; the message is one line that says why."""


class Renderer:
    """Draws one world of a compiled model into memory.

    Args:
        model: the scene; it is copied, not changed.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        camera: a camera of the model by name, or `follow`, which keeps the robot in the middle. None follows
            what moves freely, and takes the model's own first camera (if any) for a robot that is mounted.

    Raises:
        RenderError: there is no OpenGL driver that works without a screen.
        ValueError: the model has no such camera.
    """

    def __init__(
        self, model: mujoco.MjModel, width: int = 640, height: int = 480, camera: str | None = None
    ) -> None:
        self._model = _presentable(model, width, height)
        self._data = mujoco.MjData(self._model)
        self._root, self._radius = find_robot(self._model)
        self._ground = _ground(self._model)
        self._camera = self._choose_camera(camera)
        self._scene = mujoco.MjvScene(self._model, maxgeom=10_000)
        self._option = mujoco.MjvOption()
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._gl, self._context = make_drawing_context(self._model, width, height)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)

    def render(self, qpos: NDArray[np.floating]) -> NDArray[np.uint8]:
        """The world in position `qpos` `[nq]` as `[H, W, 3]` red, green, blue.

        A position that is not finite is drawn as the model's initial one.
        """
        model, data = self._model, self._data
        data.qpos[:] = qpos if np.isfinite(qpos).all() else model.qpos0
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        # The ground that is drawn ends and a light's shadows do too: both come along with the robot.
        here = data.subtree_com[self._root, :2]
        data.light_xpos[:, :2] += here
        data.geom_xpos[self._ground, :2] += TILE_M * np.round(here / TILE_M)
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        picture = np.empty((self._viewport.height, self._viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._context)
        return np.flipud(picture)  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Release the driver's memory; the object is not used afterwards."""
        self._context.free()
        self._gl.free()

    def _choose_camera(self, name: str | None) -> mujoco.MjvCamera:
        model, camera = self._model, mujoco.MjvCamera()
        moves_freely = (model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).any()
        if name == FOLLOW or (name is None and (moves_freely or not model.ncam)):
            camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
            camera.trackbodyid = self._root
            camera.azimuth, camera.elevation = AZIMUTH_DEG, ELEVATION_DEG
            camera.distance = DISTANCE_IN_RADII * self._radius
            return camera
        names = [model.camera(index).name for index in range(model.ncam)]
        if name is not None and name not in names:
            raise ValueError(f"camera {name!r}: the model has {', '.join([FOLLOW, *names])}")
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = 0 if name is None else names.index(name)
        return camera


def _presentable(model: mujoco.MjModel, width: int, height: int) -> mujoco.MjModel:
    """A copy to draw: room for the picture, and light from the side, and a calm ground with a scale."""
    model = copy.copy(model)
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    # Shadows only around the robot: a small map is sharp there, and drawn in half the time without a GPU.
    model.vis.quality.shadowsize = min(SHADOW_PIXELS, model.vis.quality.shadowsize)
    model.vis.map.shadowclip = SHADOW_RADII * find_robot(model)[1] / model.stat.extent
    model.vis.headlight.ambient = np.maximum(model.vis.headlight.ambient, 0.3)  # or shadows are black
    # A robot often brings a sun along: the stage's and its own would bleach the ground.
    brightness = model.light_diffuse.sum(0).max(initial=BRIGHTEST)
    model.light_diffuse *= BRIGHTEST / brightness
    # From straight above, the ground's own shadow flickers on it where drivers round coarsely.
    straight_down = np.flatnonzero(model.light_dir[:, 2] < -0.999)
    model.light_dir[straight_down] = LIGHT_DIRECTION
    model.light_dir0[straight_down] = LIGHT_DIRECTION
    ground = _ground(model)
    model.geom_size[ground, :2] = GROUND_M
    uneven = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_HFIELD)
    materials = set(model.geom_matid[np.concatenate((ground, uneven))]) - {-1}
    for material in materials:
        model.mat_texuniform[material] = True
        model.mat_texrepeat[material] = 1.0 / TILE_M
        model.mat_reflectance[material] = 0.0
        for texture in set(model.mat_texid[material]) - {-1}:
            size = model.tex_height[texture] * model.tex_width[texture] * model.tex_nchannel[texture]
            texels = model.tex_data[model.tex_adr[texture] :][:size]
            texels[:] = texels.mean() + GROUND_CONTRAST * (texels - texels.mean())
    return model


def _ground(model: mujoco.MjModel) -> NDArray[np.intp]:
    """The geoms that are level planes."""
    is_plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    return np.flatnonzero(is_plane & (model.geom_quat[:, 0] == 1.0) & (model.geom_bodyid == 0))


def find_robot(model: mujoco.MjModel) -> tuple[int, float]:
    """The body at the root of the first joint, and the radius in m of a ball around all that hangs on it."""
    if not model.njnt:
        return 0, model.stat.extent
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    root = model.body_rootid[model.jnt_bodyid[0]]
    geoms = model.body_rootid[model.geom_bodyid] == root
    away = np.linalg.norm(data.geom_xpos[geoms] - data.subtree_com[root], axis=1)
    return int(root), float((away + model.geom_rbound[geoms]).max(initial=0.1))


def make_drawing_context(model: mujoco.MjModel, width: int, height: int) -> tuple[Any, mujoco.MjrContext]:
    """A current OpenGL context, and MuJoCo's context in it for `model`.

    Raises:
        RenderError: no OpenGL driver works here.
    """
    reasons = []
    for make in _gl_contexts():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GLFW warns of what is an error here
                gl = make(width, height)
            # MuJoCo ends the process where it is asked for the second time after a context that is none.
            if not getattr(gl, "_context", True):
                raise OSError("no screen answers")
            gl.make_current()
            return gl, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        # Bindings fail in many ways without a driver: AttributeError, OSError, ImportError, their own errors.
        except Exception as error:
            reasons.append(" ".join(str(error).split()) or type(error).__name__)
    reason = "; ".join(dict.fromkeys(reasons))
    raise RenderError(f"no OpenGL driver works here ({reason}); install EGL, or set MUJOCO_GL")


def _gl_contexts() -> Iterator[Callable[[int, int], Any]]:
    """What can make an OpenGL context, in the order in which it is tried.

    That is MuJoCo's choice (`MUJOCO_GL`), or EGL where nobody chose and there is no screen. A screen may be
    named and not answer, as in an old terminal multiplexer or a container: then EGL comes second.

    MuJoCo itself reads the variable once, when it is imported, and would not be imported at all where EGL
    was asked for and is missing: training must not need a driver, so EGL is only looked for here.
    """
    chosen = os.environ.get("MUJOCO_GL")
    has_screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if chosen or has_screen or sys.platform != "linux":
        yield lambda width, height: import_module("mujoco.gl_context").GLContext(width, height)
    if not chosen and sys.platform == "linux":
        yield lambda width, height: import_module("mujoco.egl").GLContext(width, height)
