"""A film of the policy at work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import imageio_ffmpeg
import numpy as np
import torch
from numpy.typing import NDArray

from envs_gpu.render import Renderer, RenderError
from pi_incubator.errors import UserError
from pi_incubator.evaluation.acting import Act, Acting, as_actor

if TYPE_CHECKING:
    from envs_gpu.vec_env import VecEnv

FRAMES_PER_S = 30.0  # or what the control rate divides into nearest to it
WIDTH, HEIGHT = 640, 480  # of a single world's picture
MAX_WIDTH = 1280  # of all tiles together


def record_video(
    env: VecEnv,
    policy: Acting | Act,
    path: Path,
    *,
    length_s: float,
    seed: int,
    num_worlds: int = 1,
    width: int | None = None,
    height: int | None = None,
    camera: str | None = None,
) -> None:
    """Write an mp4, in real time, of the deterministic policy in freshly reset worlds.

    Args:
        env: is reset, and left in the middle of something.
        policy: as `evaluate` takes it.
        path: of the video; its folder must exist.
        length_s: simulated seconds; episodes that end sooner are followed by the next.
        seed: of the worlds.
        num_worlds: how many of the env's worlds to show, as tiles.
        width: of one world's tile, in pixels; None as `tile_size` says.
        height: likewise.
        camera: as `envs_gpu.render.Renderer` takes it.

    Raises:
        UserError: nothing can be drawn or encoded here.
    """
    if env.drawn_model is None and not env.draws_itself:
        problem = f"{env.spec.name} has no MuJoCo model, and does not draw itself as rgb_array"
        raise UserError(f"{path}: cannot be drawn: {problem}")
    if num_worlds > env.num_envs:
        raise UserError(f"{path}: cannot show {num_worlds} worlds of {env.num_envs}; raise --num-envs")
    usual = tile_size(num_worlds)
    every = max(1, round(env.spec.control_hz / FRAMES_PER_S))
    num_steps = max(1, round(length_s * env.spec.control_hz))
    size = width or usual[0], height or usual[1]
    renderer = None
    try:
        if env.drawn_model is None:
            pictures = _own_pictures(env, policy, seed, num_steps, num_worlds, every)
        else:
            renderer = Renderer(env.drawn_model, *size, camera)
            positions = _roll_out(env, policy, seed, num_steps, num_worlds)[::every]
            pictures = (tiled([renderer.render(world) for world in qpos]) for qpos in positions)
        _encode(path, pictures, frames_per_s=env.spec.control_hz / every)
    except RenderError as error:
        raise UserError(f"{path}: cannot be drawn: {error}") from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be encoded ({error}); reinstall imageio-ffmpeg") from None
    finally:
        if renderer:
            renderer.close()


def tile_size(num_worlds: int) -> tuple[int, int]:
    """Width and height of one tile in pixels, even numbers; smaller where there are many."""
    columns = num_columns(num_worlds)
    width = min(WIDTH, MAX_WIDTH // columns) // 8 * 8
    return width, width * HEIGHT // WIDTH // 2 * 2


def num_columns(num_worlds: int) -> int:
    """Of the tiles: as many as rows, or one more."""
    return math.ceil(math.sqrt(num_worlds))


@torch.no_grad()
def _roll_out(
    env: VecEnv, policy: Acting | Act, seed: int, num_steps: int, num_worlds: int
) -> NDArray[np.floating]:
    """Positions of the first worlds before every step, `[num_steps, num_worlds, nq]`, in one transfer."""
    actor = as_actor(policy, env.num_envs)
    obs = env.reset(seed)
    positions = []
    for _ in range(num_steps):
        positions.append(env.positions()[:num_worlds].clone())
        result = env.step(actor.act(obs))
        actor.observe(result)
        obs = result.obs
    return torch.stack(positions).cpu().numpy()


@torch.no_grad()
def _own_pictures(
    env: VecEnv, policy: Acting | Act, seed: int, num_steps: int, num_worlds: int, every: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield what the first worlds draw of themselves before every `every`-th step, as tiles of even size.

    Raises:
        RenderError: they draw nothing.
    """
    actor = as_actor(policy, env.num_envs)
    obs = env.reset(seed)
    for step in range(num_steps):
        if step % every == 0:
            picture = tiled(env.pictures(num_worlds))
            yield picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2]
        result = env.step(actor.act(obs))
        actor.observe(result)
        obs = result.obs


def _encode(path: Path, pictures: Iterator[NDArray[np.uint8]], frames_per_s: float) -> None:
    first = next(pictures)
    height, width, _ = first.shape
    # H.264 with 4:2:0 colours needs even sizes, and no more than that.
    # As a URL of files: ffmpeg would take `a:b.mp4` for a protocol, and `-b.mp4` for an option.
    writer = imageio_ffmpeg.write_frames(
        f"file:{path}", (width, height), fps=frames_per_s, codec="libx264", quality=8, macro_block_size=2
    )
    writer.send(None)
    for picture in chain((first,), pictures):
        writer.send(np.ascontiguousarray(picture))
    writer.close()


def tiled(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """`[H, W, 3]` pictures in rows, as near to a square as they go; what stays empty is black."""
    columns = num_columns(len(pictures))
    blank = np.zeros_like(pictures[0])
    padded = pictures + [blank] * (-len(pictures) % columns)
    rows = [np.concatenate(padded[i : i + columns], axis=1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows)
