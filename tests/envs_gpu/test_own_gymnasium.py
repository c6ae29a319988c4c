"""Envs of one's own by the name `MODULE:NAME` of Gymnasium: actions without limits, and films by the envs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.registry import UnknownNameError
from envs_gpu.zoo import ZooError, find
from pi_incubator.cli.eval import main as evaluate
from pi_incubator.cli.train import main as train
from pi_incubator.config import ConfigError
from pi_incubator.errors import UserError
from pi_incubator.evaluation.video import record_video

CPU = torch.device("cpu")
MODULE = '''
"""A mass on a line."""
import gymnasium
import numpy as np


class Point(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, limit=np.inf, render_mode=None, breaks=False):
        self.render_mode, self.breaks = render_mode, breaks
        self.model, self.data = "not of MuJoCo", [1, 2]
        self.action_space = gymnasium.spaces.Box(-limit, limit, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.velocity = float(self.np_random.uniform(-1, 1)), 0.0
        return self._observe(), {}

    def step(self, action):
        self.force = float(action[0])
        self.velocity += 0.05 * self.force
        self.position += 0.05 * self.velocity
        return self._observe(), 1.0 - self.position**2, abs(self.position) > 3, False, {}

    def render(self):
        if self.breaks:
            raise OSError("no screen")
        picture = np.zeros((33, 65, 3), np.uint8)
        picture[:, int(32 + 8 * np.clip(self.position, -3, 3))] = 255
        return picture

    def _observe(self):
        return np.array([self.position, self.velocity], np.float32)


class Blind(Point):
    metadata = {"render_modes": [], "render_fps": None}

    def __init__(self):
        super().__init__(1.0)


gymnasium.register("Point-v0", entry_point=Point, max_episode_steps=20, kwargs={"limit": 1.0})
gymnasium.register("Unbounded-v0", entry_point=Point, max_episode_steps=20)
gymnasium.register("Breaks-v0", entry_point=Point, max_episode_steps=20, kwargs={"breaks": True})
gymnasium.register("Blind-v0", entry_point=Blind, max_episode_steps=20)
'''
SMALL = [
    *("env.num_envs=2", "algorithm.horizon=8", "algorithm.minibatch_size=16", "algorithm.num_epochs=1"),
    *("training.total_steps=32", "compute.compile=off", "tracking.backend=none", "evaluation.num_episodes=1"),
    *("evaluation.video=true", "evaluation.video_length_s=0.5", "deployment.num_check_observations=10"),
]


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that registers envs when it is imported, which nobody has done yet."""
    import gymnasium

    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "own_point.py").write_text(MODULE)
    (folder / "broken_module.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(folder)
    known = dict(gymnasium.registry)
    yield
    sys.modules.pop("own_point", None)
    for name in set(gymnasium.registry) - set(known):
        del gymnasium.registry[name]


def zero(obs: object) -> torch.Tensor:
    return torch.zeros(1, 1)


def frames_of(path: Path) -> list[np.ndarray]:
    properties, *frames = imageio_ffmpeg.read_frames(str(path))
    width, height = properties["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames]


def test_the_module_of_a_name_is_imported() -> None:
    """`MODULE:NAME` is found, stepped and continued like any other env."""
    env = make_env("gymnasium/own_point:Point-v0", num_envs=2, device=CPU)
    assert env.spec.name == "gymnasium/own_point:Point-v0"
    assert (env.spec.action_low, env.spec.max_episode_steps, env.spec.control_hz) == ((-1.0,), 20, 30.0)
    before = env.state_dict()
    first = env.step(torch.ones(2, 1)).obs["policy"].clone()
    env.load_state_dict(before)
    assert torch.equal(env.step(torch.ones(2, 1)).obs["policy"], first)
    env.close()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("gymnasium/own_point:Piont-v0", UnknownNameError, "did you mean 'gymnasium/own_point:Point-v0'"),
        ("gymnasium/no_such_module:A-v0", ZooError, r"'no_such_module' cannot be imported .*PYTHONPATH"),
        ("gymnasium/broken_module:A-v0", ZooError, r"'broken_module' cannot be imported \(RuntimeError: two"),
        ("gymnasium/:A-v0", ZooError, "cannot be imported"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line(name: str, error: type[Exception], says: str) -> None:
    """A wrong name suggests the nearest; a module that cannot be imported says why."""
    with pytest.raises(error, match=says) as caught:
        find(name)
    assert "\n" not in str(caught.value)


def test_actions_without_limits_pass_unclipped(caplog: pytest.LogCaptureFixture) -> None:
    """What the policy asks for is what the env gets, and a warning says so."""
    env = make_env("gymnasium/own_point:Unbounded-v0", num_envs=1, device=CPU)
    env.step(torch.full((1, 1), 1234.5))
    assert env.worlds[0].unwrapped.force == 1234.5  # type: ignore[attr-defined]
    assert "its actions have no limits; those of the policy pass unclipped" in caplog.text
    env.close()


def test_an_env_without_limits_is_trained_judged_and_filmed(tmp_path: Path) -> None:
    """The whole command: two iterations, evaluation, a film by the env itself, and the export."""
    (tmp_path / "a.yaml").write_text("env: {name: 'gymnasium/own_point:Unbounded-v0'}")
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=run"]
    train(["--config", str(tmp_path / "a.yaml"), *SMALL, *place])
    frames = frames_of(tmp_path / "run" / "video.mp4")
    assert len(frames) == 15
    assert frames[0].shape == (32, 64, 3)
    assert frames[0].max() > 150
    assert (tmp_path / "run" / "policy.onnx").is_file()
    film = tmp_path / "two.mp4"
    argv = [str(tmp_path / "run"), "--video", str(film), "--video-worlds", "2", "--episodes", "1"]
    assert evaluate(argv) == 0
    assert frames_of(film)[0].shape == (32, 130, 3)


def test_squashed_actions_need_limits(tmp_path: Path) -> None:
    """SAC's policy fills the limits of the action, so an env without them is one line."""
    (tmp_path / "a.yaml").write_text(
        "env: {name: 'gymnasium/own_point:Unbounded-v0'}\nalgorithm: {name: sac}"
    )
    with pytest.raises(ConfigError, match=r"a\.yaml:1: env\.name = .*actions without limits"):
        train(
            [
                "--config",
                str(tmp_path / "a.yaml"),
                f"experiment.output_dir={tmp_path}",
                "tracking.backend=none",
            ]
        )


@pytest.mark.parametrize(
    ("name", "says"),
    [("Breaks-v0", r"does not draw itself \(no screen\)"), ("Blind-v0", "does not draw itself as rgb_array")],
)
def test_a_film_that_cannot_be_drawn_is_one_line(tmp_path: Path, name: str, says: str) -> None:
    """An env that fails to draw, or never does."""
    env = make_env(f"gymnasium/own_point:{name}", num_envs=1, device=CPU)
    with pytest.raises(UserError, match=says):
        record_video(env, zero, tmp_path / "a.mp4", length_s=0.5, seed=0)
    env.close()


@pytest.mark.parametrize("name", ["a:b.mp4", "-a.mp4", "%d.mp4", "a b?.mp4"])
def test_a_film_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The encoder takes none of these for an option, a protocol or a pattern."""
    monkeypatch.chdir(tmp_path)
    env = make_env("gymnasium/own_point:Point-v0", num_envs=1, device=CPU)
    record_video(env, zero, Path(name), length_s=0.2, seed=0)
    assert (tmp_path / name).stat().st_size > 0
    env.close()
