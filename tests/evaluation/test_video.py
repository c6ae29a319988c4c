"""Films: tiles of one size that any codec takes, of our own tasks and of envs written elsewhere."""

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.render import Renderer, RenderError
from pi_incubator.errors import UserError
from pi_incubator.evaluation.video import num_columns, record_video, tile_size, tiled

CPU = torch.device("cpu")


def still(env):
    action = torch.zeros(env.num_envs, env.spec.action_dim)
    return lambda obs: action


def film(env, path, **options):
    try:
        Renderer(env.drawn_model, 16, 16).close()
    except RenderError as error:
        pytest.skip(str(error))
    record_video(env, still(env), path, length_s=0.2, seed=0, **options)
    properties, *frames = imageio_ffmpeg.read_frames(str(path))
    width, height = properties["size"]
    return [np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3) for frame in frames]


@pytest.mark.parametrize("num_worlds", [1, 2, 3, 4, 5, 9, 12, 64])
def test_a_grid_is_nearly_square_even_and_not_too_wide(num_worlds):
    width, height = tile_size(num_worlds)
    columns = num_columns(num_worlds)
    rows = -(-num_worlds // columns)
    assert columns - rows in (0, 1)
    assert width % 2 == height % 2 == 0
    assert columns * width <= 1280
    assert width / height == pytest.approx(4 / 3, rel=0.02)
    picture = tiled([np.full((height, width, 3), index + 1, np.uint8) for index in range(num_worlds)])
    assert picture.shape == (rows * height, columns * width, 3)
    corners = picture[::height, ::width, 0].ravel().tolist()
    assert corners == [*range(1, num_worlds + 1), *[0] * (rows * columns - num_worlds)]


def test_each_tile_shows_its_own_world(tmp_path):
    env = make_env("cartpole_balance", num_envs=5, device=CPU)
    last = film(env, tmp_path / "five.mp4", num_worlds=5, width=96, height=72)[-1]
    assert last.shape == (2 * 72, 3 * 96, 3)
    tiles = [last[y : y + 72, x : x + 96].astype(int) for y in (0, 72) for x in (0, 96, 192)]
    for tile, qpos in zip(tiles, env.physics.state.qpos, strict=False):
        columns = np.nonzero(tile[..., 2] - tile[..., 0] > 60)[1]  # the cart is blue
        # The camera `track` is 5 m away and sees 45 degrees from top to bottom.
        expected = 48 + qpos[0].item() * 36 / (5 * np.tan(np.deg2rad(22.5)))
        assert np.median(columns) == pytest.approx(expected, abs=2.5)
    assert tiles[5].max() < 20  # nobody lives there
    env.close()


def test_more_tiles_than_worlds_are_refused(tmp_path):
    env = make_env("cartpole_balance", num_envs=2, device=CPU)
    with pytest.raises(UserError, match=r"cannot show 9 worlds of 2; raise --num-envs"):
        record_video(env, still(env), tmp_path / "nine.mp4", length_s=0.1, seed=0, num_worlds=9)
    env.close()


def test_a_gymnasium_env_on_mujoco_is_filmed(tmp_path):
    env = make_env("gymnasium/Hopper-v5", num_envs=2, device=CPU)
    first = film(env, tmp_path / "hopper.mp4", num_worlds=2, width=96, height=72)[0]
    assert first.shape == (72, 192, 3)
    assert first.std() > 5
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brax/ant", "playground/CartpoleBalance"])
def test_envs_in_jax_are_filmed(name, tmp_path):
    env = make_env(name, num_envs=2, device=CPU)
    assert env.positions().shape == (2, env.drawn_model.nq)
    frames = film(env, tmp_path / "jax.mp4", num_worlds=2, width=96, height=72)
    assert frames[0].std() > 5
    assert not np.array_equal(frames[0], frames[-1])
    env.close()


def test_what_has_no_model_is_named(tmp_path, monkeypatch):
    env = make_env("gymnasium/Pendulum-v1", num_envs=1, device=CPU)
    monkeypatch.setattr(type(env), "draws_itself", False)
    with pytest.raises(UserError, match=r"gymnasium/Pendulum-v1 has no MuJoCo model"):
        record_video(env, still(env), tmp_path / "no.mp4", length_s=0.1, seed=0)
    env.close()
