"""Robots of MuJoCo Menagerie, as they are: every engine runs them, or says in one line why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from envs_gpu.errors import EnvError
from envs_gpu.make import make_env
from envs_gpu.physics import BACKENDS
from tests.conftest import SHARED_ROBOTS

SCENES = sorted(Path(os.environ.get("MENAGERIE_ROOT", SHARED_ROBOTS)).glob("*/scene*.xml"))
NUM_WORLDS, NUM_STEPS = 4, 25
CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.skipif(not SCENES, reason="MENAGERIE_ROOT names no folder with robots")
@pytest.mark.parametrize("backend", BACKENDS.names())
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"{scene.parent.name}/{scene.stem}")
def test_a_robot_runs_or_is_refused_in_one_line(scene: Path, backend: str) -> None:
    env, refusal = None, ""
    try:
        env = make_env("hold_pose", backend=backend, num_envs=NUM_WORLDS, device=CPU, model=str(scene))
    except EnvError as error:
        refusal = str(error)
    if env is None:
        assert backend != "mujoco", refusal
        assert "\n" not in refusal
        assert "env.backend=" in refusal or "env.mjx_impl=" in refusal
        return
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_STEPS):
        result = env.step(2 * torch.rand(NUM_WORLDS, env.spec.action_dim, generator=generator) - 1)
        assert not result.metrics["physics/broken"].any()
        assert result.obs["policy"].isfinite().all()
        assert result.reward.isfinite().all()
    env.close()
