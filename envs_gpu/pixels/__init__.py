"""Pictures as observations: the group `pixels`, `[N, C, H, W]` uint8.

A painter draws worlds from their positions alone, so it serves every physics backend, and a picture depends
on nothing but its own world. The latest `frames` pictures of a world are stacked, oldest first, because
velocities show in no single one.

Letters: N worlds, K worlds that are drawn, nq positions, H height, W width, C channels of a whole stack,
L pictures that are remembered.
"""

from __future__ import annotations

import importlib.util
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.errors import SettingError
from envs_gpu.render import AZIMUTH_DEG, DISTANCE_IN_RADII, ELEVATION_DEG, FOLLOW, find_robot

log = logging.getLogger(__name__)

GROUP = "pixels"
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


@dataclass(frozen=True)
class PixelOptions:
    """What is drawn of every world."""

    width: int = 64
    """W, in pixels."""
    height: int = 64
    """H, in pixels."""
    camera: str | None = None
    """A camera of the model, or `follow`; None follows what moves freely, else takes the first camera."""
    frames: int = 3
    """Pictures in a stack, the latest one among them."""
    frame_gap: int = 1
    """Control steps between two pictures of a stack."""
    gray: bool = False
    """One channel a picture instead of red, green and blue."""
    renderer: str = "auto"
    """`warp`, `mujoco`, or `auto`."""


class PixelError(SettingError):
    """Nothing can be drawn as it was asked for; the message is one line that says why.

    Args:
        key: the option of `PixelOptions` that is to blame.
        value: what it was.
        problem: what is wrong with it.
        fix: what to do.
    """

    def __init__(self, key: str, value: object, problem: str, fix: str) -> None:
        super().__init__(f"env.pixels.{key}", value, problem, fix)


class Painter(ABC):
    """Draws worlds of one model through one of its cameras: without shadows and mirrors, before a black sky.

    The sky alone costs MuJoCo Warp a third of the time on a CPU, and has nothing to tell.
    """

    name: ClassVar[str]

    @abstractmethod
    def draw(self, qpos: Tensor) -> Tensor:
        """Worlds in finite positions `qpos` `[K, nq]` as red, green and blue, `[K, H, W, 3]` uint8.

        On CUDA K is always N.
        """

    def close(self) -> None:
        """Release what the driver holds."""


class NoPixels:
    """The null object: an env that is not drawn."""

    shape: tuple[int, int, int] | None = None
    """Channels, height, width of the observation; None without one."""

    def advance(self, qpos: Tensor) -> None:
        """Nothing to draw."""

    def restart(self, mask: Tensor, qpos: Tensor) -> None:
        """Nothing to draw."""

    def observation(self) -> dict[str, Tensor]:
        """No group."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a bit-exact continuation needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""

    def close(self) -> None:
        """Nothing to release."""


class PixelStack(NoPixels):
    """The latest pictures of every world.

    Args:
        spec: the scene; it is copied, not changed.
        options: size, camera, frames and renderer.
        num_worlds: N.
        device: where the pictures live.
        num_threads: CPU threads that draw.

    Raises:
        PixelError: no such camera, or nothing can be drawn here.
    """

    def __init__(
        self,
        spec: mujoco.MjSpec,
        options: PixelOptions,
        num_worlds: int,
        device: torch.device,
        num_threads: int = 1,
    ) -> None:
        self._painter = make_painter(spec, options, num_worlds, device, num_threads)
        self._channels = 1 if options.gray else 3
        length = (options.frames - 1) * options.frame_gap + 1
        size = (options.height, options.width)
        self.shape = (options.frames * self._channels, *size)
        # Oldest first. [N, L, channels, H, W]
        history = (num_worlds, length, self._channels, *size)
        self._history = torch.zeros(history, dtype=torch.uint8, device=device)
        self._gap = options.frame_gap
        self._luma = torch.tensor(LUMA, device=device)
        # A world that went NaN is drawn in the model's initial position: its pictures must be numbers too.
        self._qpos0 = torch.tensor(spec.copy().compile().qpos0, device=device)

    def advance(self, qpos: Tensor) -> None:
        """Take the next picture of every world, in positions `qpos` `[N, nq]`."""
        self._history = torch.cat((self._history[:, 1:], self._draw(qpos)), dim=1)

    def restart(self, mask: Tensor, qpos: Tensor) -> None:
        """Forget the past where `mask` `[N]` is true: a stack begins with copies of its first picture."""
        if mask.device.type == "cpu":
            rows = mask.nonzero().squeeze(-1)
            if not len(rows):
                return
            self._history = self._history.clone()
            self._history[rows] = self._draw(qpos[rows])
        else:
            self._history = torch.where(mask[:, None, None, None, None], self._draw(qpos), self._history)

    def observation(self) -> dict[str, Tensor]:
        """`pixels` `[N, C, H, W]`, which later calls leave as it is."""
        return {GROUP: self._history[:, :: self._gap].flatten(1, 2)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"history": self._history.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._history = state["history"]

    def close(self) -> None:
        self._painter.close()

    def _draw(self, qpos: Tensor) -> Tensor:
        """`[K, nq]` -> `[K, 1, channels, H, W]`."""
        finite = qpos.isfinite().all(-1, keepdim=True)
        picture = self._painter.draw(torch.where(finite, qpos, self._qpos0.to(qpos.dtype)))
        if self._channels == 1:
            picture = (picture.float() @ self._luma).round().to(torch.uint8).unsqueeze(-1)
        return picture.permute(0, 3, 1, 2).unsqueeze(1)


def choose_renderer(renderer: str) -> tuple[str, str]:
    """The renderer to use and the reason in a sentence; only `auto` is a choice."""
    if renderer != "auto":
        return renderer, f"renderer {renderer}: as asked for"
    if importlib.util.find_spec("mujoco_warp") is None:
        return "mujoco", "renderer mujoco: mujoco_warp is not installed"
    return "warp", "renderer warp: needs no driver, and on a CPU it is several times faster than OpenGL"


def make_painter(
    spec: mujoco.MjSpec,
    options: PixelOptions,
    num_worlds: int,
    device: torch.device,
    num_threads: int,
) -> Painter:
    """The painter that `options.renderer` asks for; `auto` falls back to C where Warp cannot draw the scene.

    Raises:
        PixelError: no such camera, or nothing can be drawn here.
    """
    model, camera = model_with_camera(spec, options.camera)
    chosen, _ = choose_renderer(options.renderer)
    if chosen == "warp":
        from envs_gpu.pixels._warp import WarpPainter

        try:
            return WarpPainter(model, camera, options, num_worlds, device, num_threads)
        # MuJoCo Warp refuses models with what it does not know yet, in either of these ways.
        except (NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split())
            if options.renderer == "warp":
                fix = "set it to mujoco"
                raise PixelError("renderer", "warp", f"cannot draw this model ({reason})", fix) from error
            log.warning("renderer mujoco instead of warp, which cannot draw this model: %s", reason)
    from envs_gpu.pixels._mujoco import MujocoPainter

    return MujocoPainter(model, camera, options)


def model_with_camera(spec: mujoco.MjSpec, name: str | None) -> tuple[mujoco.MjModel, int]:
    """The compiled scene and the index of its camera `name`; `follow` is added to it.

    Raises:
        PixelError: the scene has no such camera.
    """
    spec = spec.copy()
    model = spec.compile()
    names = [model.camera(index).name for index in range(model.ncam)]
    moves_freely = (model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).any()
    if name == FOLLOW or (name is None and (moves_freely or not names)):
        return _add_follower(spec, model)
    if name is not None and name not in names:
        fix = f"set it to one of {', '.join([FOLLOW, *names])}"
        raise PixelError("camera", name, "the model has no such camera", fix)
    return model, 0 if name is None else names.index(name)


def _add_follower(spec: mujoco.MjSpec, model: mujoco.MjModel) -> tuple[mujoco.MjModel, int]:
    """A camera that keeps the robot in the middle, where videos have theirs."""
    root, radius = find_robot(model)
    tracks = mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    body = spec.body(model.body(root).name) if model.body(root).name else spec.bodies[root]
    body.add_camera(name=f"{FOLLOW} (pixels)", mode=tracks)
    model = spec.compile()
    camera = model.camera(f"{FOLLOW} (pixels)").id
    azimuth, elevation = np.deg2rad((AZIMUTH_DEG, ELEVATION_DEG))
    level = np.cos(elevation)
    forward = np.array([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    axes = np.stack((right, np.cross(right, forward), -forward), axis=1)
    model.cam_poscom0[camera] = -DISTANCE_IN_RADII * radius * forward
    model.cam_mat0[camera] = axes.ravel()
    return model, camera
