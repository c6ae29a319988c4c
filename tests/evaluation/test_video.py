"""Films: tiles of one size that any codec takes, of our own tasks and of envs written elsewhere."""

from typing import ClassVar

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from envs_gpu.make import make_env
from envs_gpu.render import Renderer, RenderError
from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.errors import UserError
from pi_incubator.evaluation import video
from pi_incubator.evaluation.video import num_columns, record_video, tile_size, tiled
from tests.envs import ForgetfulEnv

CPU = torch.device("cpu")


def still(env):
    action = torch.zeros(env.num_envs, env.spec.action_dim)
    return lambda obs: action


def film(env, path, length_s=0.2, **options):
    try:
        Renderer(env.drawn_model, 16, 16).close()
    except RenderError as error:
        pytest.skip(str(error))
    record_video(env, still(env), path, length_s=length_s, seed=0, **options)
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


def test_the_shortest_film_is_one_picture(tmp_path):
    env = make_env("cartpole_balance", num_envs=1, device=CPU)
    assert len(film(env, tmp_path / "brief.mp4", length_s=1e-4, width=96, height=72)) == 1
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


class Clock(ForgetfulEnv):
    """Worlds whose position is how many steps they have made, of which each draws a grey as bright."""

    drawn_model, draws_itself = "a model", False

    def __init__(self, control_hz, size=(48, 64)):
        limits = ((-1.0,), (1.0,))
        self.spec = EnvSpec("clock", 3, {"policy": 1}, 1, *limits, ("hand",), control_hz, 1000, CPU)
        self.size, self.seeds = size, []

    def reset(self, seed):
        self.seeds.append(seed)
        self.steps = torch.zeros(3, 1)
        return TensorDict({"policy": self.steps}, batch_size=[3])

    def positions(self):
        return self.steps + torch.tensor([[0.0], [20.0], [40.0]])

    def step(self, action):
        self.steps.add_(1.0)  # in place: what was shown before must stay
        no = torch.zeros(3, dtype=torch.bool)
        obs = TensorDict({"policy": self.steps}, batch_size=[3])
        return StepResult(obs, no.float(), no, no, obs, {}, no)

    def pictures(self, num_worlds):
        return [grey(self.size, position) for position in self.positions()[:num_worlds]]


def grey(size, position):
    return np.full((*size, 3), 2 * int(position[0]), np.uint8)


class GreyRenderer:
    """Draws `Clock`; remembers what it was told, and whether it was closed."""

    made: ClassVar[list] = []

    def __init__(self, model, width, height, camera):
        self.size, self.camera, self.is_closed = (height, width), camera, False
        self.made.append(self)

    def render(self, position):
        return grey(self.size, position)

    def close(self):
        self.is_closed = True


@pytest.fixture
def drawn_grey(monkeypatch):
    monkeypatch.setattr(video, "Renderer", GreyRenderer)
    GreyRenderer.made.clear()
    return GreyRenderer.made


def read(path):
    properties, *frames = imageio_ffmpeg.read_frames(str(path))
    width, height = properties["size"]
    return properties, [
        np.frombuffer(frame, np.uint8).reshape(height, width, 3).astype(int) for frame in frames
    ]


@pytest.mark.parametrize(
    ("control_hz", "length_s", "every", "num_frames"),
    [(10.0, 1.0, 1, 10), (30.0, 0.5, 1, 15), (50.0, 1.0, 2, 25), (100.0, 1.0, 3, 34), (50.0, 0.001, 2, 1)],
)
@pytest.mark.parametrize("by", ["renderer", "env"])
def test_a_film_is_in_real_time(tmp_path, drawn_grey, control_hz, length_s, every, num_frames, by):
    """About 30 frames a second, or every step where there are fewer; each frame shows its own moment, from
    the first on, and a second of film is a second of simulation."""
    env = Clock(control_hz)
    if by == "env":
        env.drawn_model, env.draws_itself = None, True
    size = {"width": 64, "height": 48}
    record_video(env, still(env), tmp_path / "a.mp4", length_s=length_s, seed=7, **size)
    properties, frames = read(tmp_path / "a.mp4")
    assert properties["fps"] == pytest.approx(control_hz / every, abs=0.01)
    assert len(frames) == num_frames
    assert env.seeds == [7]
    for index, frame in enumerate(frames):
        assert frame.shape == (48, 64, 3)
        assert frame.mean() == pytest.approx(2 * every * index, abs=5)


def test_pictures_of_odd_sizes_are_cut_to_even_ones(tmp_path):
    """H.264 takes no others; three worlds are three tiles, and the fourth is black."""
    env = Clock(30.0, size=(33, 41))
    env.drawn_model, env.draws_itself = None, True
    record_video(env, still(env), tmp_path / "a.mp4", length_s=0.1, seed=0, num_worlds=3)
    _, frames = read(tmp_path / "a.mp4")
    assert len(frames) == 3
    assert frames[0].shape == (66, 82, 3)
    tiles = [frames[-1][y : y + 25, x : x + 33].mean() for y in (4, 37) for x in (4, 45)]
    assert tiles == pytest.approx([4.0, 44.0, 84.0, 0.0], abs=6)


@pytest.mark.parametrize(("given", "size"), [({}, (480, 640)), ({"width": 64, "height": 32}, (32, 64))])
def test_the_renderer_is_asked_for_one_tile_and_closed(tmp_path, drawn_grey, given, size):
    """Of the usual size unless another is given, by the camera that is named."""
    env = Clock(30.0)
    record_video(env, still(env), tmp_path / "a.mp4", length_s=0.05, seed=0, camera="side", **given)
    (renderer,) = drawn_grey
    assert (renderer.size, renderer.camera, renderer.is_closed) == (size, "side", True)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (RenderError("no screen"), "cannot be drawn: no screen"),
        (OSError("full"), r"cannot be encoded \(full\)"),
    ],
)
def test_a_film_that_fails_is_one_line_and_closes_the_renderer(
    tmp_path, drawn_grey, monkeypatch, error, match
):
    def fail(self, position):
        raise error

    monkeypatch.setattr(GreyRenderer, "render", fail)
    env = Clock(30.0)
    with pytest.raises(UserError, match=match):
        record_video(env, still(env), tmp_path / "a.mp4", length_s=0.1, seed=0)
    assert drawn_grey[0].is_closed


def test_one_tile_is_large_and_many_are_small():
    assert tile_size(1) == (640, 480)
    assert tile_size(4) == (640, 480)
    assert tile_size(9) == (424, 318)
    assert tile_size(64) == (160, 120)


@pytest.mark.parametrize("by", ["renderer", "env"])
def test_a_policy_with_a_memory_begins_each_episode_anew(tmp_path, drawn_grey, by):
    """What it remembers are the steps of the episode: after four of them another begins."""

    class Counter:
        def initial_state(self, num_worlds):
            return torch.zeros(num_worlds, 1)

        def mean(self, obs, state):
            assert torch.equal(state, obs["policy"])
            return state * 0.0, state + 1.0

    class Short(Clock):
        def step(self, action):
            result = super().step(action)
            done = self.steps[:, 0] >= 4
            self.steps.masked_fill_(done[:, None], 0.0)
            return result._replace(terminated=done)

    env = Short(30.0)
    if by == "env":
        env.drawn_model, env.draws_itself = None, True
    record_video(env, Counter(), tmp_path / "a.mp4", length_s=0.4, seed=0, width=64, height=48)
    _, frames = read(tmp_path / "a.mp4")
    assert [round(frame.mean() / 2) for frame in frames] == pytest.approx([i % 4 for i in range(12)], abs=2)
