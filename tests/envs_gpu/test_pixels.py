"""Pixels show the world that they belong to, now and in the steps before."""

import subprocess
import sys
from itertools import pairwise

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.errors import EnvError
from envs_gpu.make import make_env
from envs_gpu.pixels import PixelError, PixelOptions, PixelStack, make_painter, model_with_camera
from envs_gpu.tasks import TASKS
from envs_gpu.torchrl_env import TorchRLEnv
from envs_gpu.zoo import ZooError

CPU = torch.device("cpu")
SMALL = {"width": 48, "height": 24, "camera": "pole"}
each_renderer = pytest.mark.parametrize("renderer", ["warp", "mujoco"])


def cartpole():
    return TASKS.get("cartpole_balance")().scene()


def open_painter(scene, num_worlds=4, **options):
    try:
        return make_painter(scene, PixelOptions(**options), num_worlds, CPU, num_threads=2)
    except PixelError as error:
        if "no OpenGL driver" in str(error):
            pytest.skip(str(error))
        raise


def open_env(num_envs=4, seed=3, backend="auto", **options):
    options = {"renderer": "warp", "frames": 3, **SMALL, **options}
    return make_env(
        "cartpole_balance",
        backend=backend,
        num_envs=num_envs,
        device=CPU,
        seed=seed,
        pixels=PixelOptions(**options),
    )


def push(env):
    return torch.ones(env.num_envs, 1)


@pytest.mark.parametrize(("task", "camera"), [("cartpole_balance", "track"), ("ant", "track")])
def test_the_c_painter_draws_what_mujoco_draws(task, camera, monkeypatch):
    scene = TASKS.get(task)().scene()
    painter = open_painter(scene, renderer="mujoco", width=64, height=48, camera=camera)
    from mujoco import egl
    from mujoco.rendering.classic import gl_context

    monkeypatch.setattr(gl_context, "GLContext", egl.GLContext, raising=False)
    model = scene.compile()
    data, theirs = mujoco.MjData(model), mujoco.Renderer(model, height=48, width=64)
    for effect in ("SHADOW", "REFLECTION", "SKYBOX"):
        theirs.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{effect}")] = False
    rng = np.random.default_rng(0)
    qpos = model.qpos0 + 0.3 * rng.uniform(-1, 1, (3, model.nq))
    ours = painter.draw(torch.from_numpy(qpos)).numpy()
    for position, picture in zip(qpos, ours, strict=True):
        data.qpos[:] = position
        mujoco.mj_forward(model, data)
        theirs.update_scene(data, camera)
        difference = np.abs(theirs.render().astype(int) - picture)
        assert difference.mean() < 0.05
        assert picture.std() > 10
    assert not np.array_equal(ours[0], ours[1])
    theirs.close()
    painter.close()


@each_renderer
@pytest.mark.parametrize("angle", [-0.5, -0.1, 0.0, 0.3])
def test_the_pole_is_where_the_camera_must_see_it(renderer, angle):
    """Its tip, by the camera's projection in closed form."""
    width, height = 96, 48
    painter = open_painter(cartpole(), renderer=renderer, width=width, height=height, camera="pole")
    cart_m = 0.2
    picture = painter.draw(torch.tensor([[cart_m, angle]])).numpy()[0].astype(int)
    painter.close()
    orange = picture[..., 0] - picture[..., 2] > 30
    rows, columns = np.nonzero(orange)
    # Pinhole: level, 5 m from the cart, with which it rides at z = 1.42 m; 14.5 degrees from top to bottom.
    pixels_per_m = height / 2 / (5.0 * np.tan(np.deg2rad(7.25)))
    tip = np.array([np.sin(angle), 1.0 + np.cos(angle)])
    tip_column = width / 2 + pixels_per_m * tip[0]
    tip_row = height / 2 - pixels_per_m * (tip[1] + 0.045 - 1.42)  # the capsule's round end is on top
    assert rows.min() == pytest.approx(tip_row, abs=1.5)
    assert columns[rows <= rows.min() + 1].mean() == pytest.approx(tip_column, abs=1.5)


def test_both_painters_see_much_the_same():
    qpos = torch.tensor([[0.0, 0.2], [-0.5, -0.4]])
    pictures = []
    for renderer in ("warp", "mujoco"):
        painter = open_painter(cartpole(), renderer=renderer, width=64, height=48, camera="track")
        pictures.append(painter.draw(qpos).float())
        painter.close()
    assert (pictures[0] - pictures[1]).abs().mean() < 12
    flat = torch.stack([picture.flatten() for picture in pictures])
    assert torch.corrcoef(flat)[0, 1] > 0.8


def test_a_picture_depends_on_its_own_world_only():
    painter = open_painter(cartpole(), num_worlds=11, renderer="warp", **SMALL)
    qpos = torch.randn(11, 2, generator=torch.Generator().manual_seed(0)) * 0.3
    together = painter.draw(qpos)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    assert torch.equal(painter.draw(qpos[order]), together[order])
    assert torch.equal(painter.draw(qpos[4:5])[0], together[4])
    painter.close()


@pytest.mark.parametrize("camera", [None, "follow"])
def test_a_robot_that_runs_away_stays_in_the_picture(camera):
    scene = TASKS.get("ant")().scene()
    painter = open_painter(scene, renderer="warp", width=64, height=64, camera=camera)
    model, index = model_with_camera(scene, camera)
    assert model.cam_bodyid[index] != 0
    qpos = torch.tensor(np.stack([model.qpos0] * 2))
    qpos[1, :2] = torch.tensor((7.0, -4.0))
    for picture in painter.draw(qpos).numpy().astype(int):
        rows, columns = np.nonzero(picture[..., 0] - picture[..., 2] > 40)
        assert len(rows) > 100
        assert abs(rows.mean() - 32) < 10
        assert abs(columns.mean() - 32) < 10
    painter.close()


def test_spec_and_shapes():
    env = open_env(frames=2)
    result = env.step(push(env))
    assert env.spec.pixels_shape == env.spec.obs_shape("pixels") == (6, 24, 48)
    assert env.spec.obs_dims == {"policy": 5}
    for obs in (env.obs, result.obs, result.final_obs):
        assert (obs["pixels"].shape, obs["pixels"].dtype) == ((4, 6, 24, 48), torch.uint8)
    gray = open_env(frames=2, gray=True)
    colour = env.reset(3)["pixels"][:, :3].float()
    luma = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]
    assert (gray.reset(3)["pixels"][:, 0] - luma).abs().max() <= 0.51
    env.close()
    gray.close()


def test_pictures_are_stacked_oldest_first():
    env = open_env(num_envs=2)
    first = env.reset(0)["pixels"].clone()
    assert torch.equal(first[:, :3], first[:, 6:])  # a start has no past
    assert torch.equal(first[:, 3:6], first[:, 6:])
    stacks = [first, *(env.step(push(env)).obs["pixels"].clone() for _ in range(12))]
    for before, after in pairwise(stacks):
        assert torch.equal(after[:, :6], before[:, 3:])
    assert not torch.equal(stacks[-1][:, 6:], stacks[-1][:, :3])
    painter = open_painter(cartpole(), renderer="warp", **SMALL)
    now = painter.draw(env.physics.state.qpos).permute(0, 3, 1, 2)
    assert torch.equal(stacks[-1][:, 6:], now)
    painter.close()
    env.close()


def test_pictures_may_lie_some_steps_apart():
    env, dense = open_env(frames=3, frame_gap=2), open_env(frames=5)
    for _ in range(9):
        sparse = env.step(push(env)).obs["pixels"].view(4, 3, 3, 24, 48)
        every = dense.step(push(dense)).obs["pixels"].view(4, 5, 3, 24, 48)
        assert torch.equal(sparse, every[:, ::2])
    env.close()
    dense.close()


def test_a_reset_clears_the_past_of_its_world_alone():
    env = open_env()
    for _ in range(15):
        env.step(push(env))
    before = env.obs["pixels"].clone()
    env.restart(torch.tensor([False, True, False, False]))
    after = env.obs["pixels"]
    others = [0, 2, 3]
    assert torch.equal(after[others], before[others])
    assert torch.equal(after[1, :3], after[1, 6:])
    assert not torch.equal(after[1, 6:], before[1, 6:])
    env.close()


def test_final_obs_holds_the_last_picture_of_the_episode():
    env = open_env(num_envs=2)
    env.task.max_episode_steps = 8
    for _ in range(7):
        last = env.step(push(env)).obs["pixels"].clone()
    result = env.step(push(env))
    assert result.truncated.all()
    final, fresh = result.final_obs["pixels"], result.obs["pixels"]
    assert torch.equal(final[:, :6], last[:, 3:])
    assert torch.equal(fresh[:, :3], fresh[:, 6:])
    assert not torch.equal(final[:, 6:], fresh[:, 6:])
    env.close()


def test_one_world_equals_the_first_of_many_and_a_seed_repeats():
    def play(num_envs, seed=3):
        env = open_env(num_envs, seed)
        env.task.max_episode_steps = 10
        pixels = torch.stack([env.step(push(env)).obs["pixels"][0].clone() for _ in range(15)])
        env.close()
        return pixels

    alone = play(1)
    assert torch.equal(alone, play(6))
    assert torch.equal(alone, play(1))
    assert not torch.equal(alone, play(1, seed=4))


def test_saved_state_goes_on_with_the_same_pixels():
    env, other = open_env(), open_env(seed=9)
    for _ in range(5):
        env.step(push(env))
    other.load_state_dict(env.state_dict())
    assert torch.equal(other.obs["pixels"], env.obs["pixels"])
    for _ in range(3):
        assert torch.equal(other.step(push(env)).obs["pixels"], env.step(push(env)).obs["pixels"])
    env.close()
    other.close()


def test_every_backend_shows_the_same_worlds():
    pictures = []
    for backend in ("mujoco", "warp"):
        env = open_env(backend=backend)
        for _ in range(10):
            env.step(push(env))
        pictures.append(env.obs["pixels"].float())
        env.close()
    # float32 and float64 positions: a ray at an edge may fall on the other side.
    assert (pictures[0] != pictures[1]).float().mean() < 0.01


def test_a_broken_world_still_has_a_picture():
    stack = PixelStack(cartpole(), PixelOptions(renderer="warp", frames=2, **SMALL), 2, CPU)
    stack.restart(torch.ones(2, dtype=torch.bool), torch.tensor([[torch.nan, 0.0], [0.0, 0.0]]))
    pixels = stack.observation()["pixels"]
    assert torch.equal(pixels[0], pixels[1])
    stack.close()


def test_torchrl_gets_the_pixels_too():
    env = TorchRLEnv(open_env(num_envs=2))
    assert env.rollout(2)["pixels"].shape == (2, 2, 9, 24, 48)
    assert env.observation_spec["pixels"].dtype == torch.uint8
    env.env.close()


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(
        EnvError, match=r"env\.pixels\.camera = 'nose': .*set it to one of follow, track, pole"
    ):
        open_env(camera="nose")
    with pytest.raises(ZooError, match=r"env\.pixels is for our own tasks only"):
        make_env("gymnasium/Pendulum-v1", num_envs=1, device=CPU, pixels=PixelOptions())


def test_without_a_driver_the_error_says_what_to_do():
    script = """
import sys
sys.modules["mujoco.egl"] = None
import torch
from envs_gpu.make import make_env
from envs_gpu.pixels import PixelError, PixelOptions
try:
    options = PixelOptions(renderer="mujoco")
    make_env("cartpole_balance", num_envs=1, device=torch.device("cpu"), pixels=options)
except PixelError as error:
    print(error)
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("env.pixels.renderer = 'mujoco': no OpenGL driver works here")
    assert done.stdout.rstrip().endswith("or set it to warp, which needs no driver")
