"""MuJoCo's own renderer: one world after the other, through OpenGL."""

from __future__ import annotations

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.pixels import Painter, PixelError, PixelOptions
from envs_gpu.render import RenderError, make_drawing_context


class MujocoPainter(Painter):
    """One scene and one OpenGL context, into which the worlds go in turn.

    Args:
        model: the scene; it is changed to hold the picture's size.
        camera: index of the camera.
        options: width and height.

    Raises:
        PixelError: there is no OpenGL driver that works without a screen.
    """

    name = "mujoco"

    def __init__(self, model: mujoco.MjModel, camera: int, options: PixelOptions) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        model.vis.global_.offwidth, model.vis.global_.offheight = options.width, options.height
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._option = mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        flags = mujoco.mjtRndFlag
        for effect in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX):
            self._scene.flags[effect] = False
        self._viewport = mujoco.MjrRect(0, 0, options.width, options.height)
        try:
            self._gl, self._context = make_drawing_context(model, options.width, options.height)
        except RenderError as error:
            fix = "or set it to warp, which needs no driver"
            raise PixelError("renderer", "mujoco", str(error), fix) from None

    def draw(self, qpos: Tensor) -> Tensor:
        # Somebody else's context may have become current since.
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        shape = (len(qpos), self._viewport.height, self._viewport.width, 3)
        pictures = np.empty(shape, dtype=np.uint8)
        for position, picture in zip(qpos.double().cpu().numpy(), pictures, strict=True):
            self._draw_one(position, picture)
        # OpenGL's first row is the lowest.
        return torch.from_numpy(pictures).flip(1).to(qpos.device)

    def close(self) -> None:
        self._context.free()
        self._gl.free()

    def _draw_one(self, qpos: np.ndarray, picture: np.ndarray) -> None:
        model, data = self._model, self._data
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._context)
