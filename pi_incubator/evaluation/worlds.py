"""The worlds that a run's policy is judged in."""

from __future__ import annotations

import torch

from envs_gpu.disturbance import Disturbance
from envs_gpu.guards import GuardOptions
from envs_gpu.make import make_env
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.pixels import PixelOptions
from envs_gpu.randomize import Randomization
from envs_gpu.vec_env import VecEnv
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.models import EnvSection

MAX_WORLDS = 1024
SEED_OFFSET = 1_000_000


def evaluation_env(
    cfg: ExperimentConfig,
    num_envs: int,
    device: torch.device,
    *,
    randomization: Randomization = Randomization(),  # noqa: B008 - frozen
    disturbance: Disturbance | None = None,
) -> VecEnv:
    """`num_envs` worlds of the run's task, at most `MAX_WORLDS`.

    Not the training env: that may have many more worlds than there are episodes to run. Not compiled either:
    a few thousand steps do not repay it. And not randomized: every policy is judged in the nominal world, so
    that figures of runs with other randomizations can be compared. The gates of an export ask for worlds that
    differ, with a `randomization` and a `disturbance` of their own.
    """
    return make_env(
        cfg.env.name,
        backend=cfg.env.backend,
        num_envs=min(num_envs, MAX_WORLDS),
        device=device,
        seed=evaluation_seed(cfg),
        options=physics_options(cfg.env, cfg.compute.physics_threads),
        guards=GuardOptions(max_broken_share=cfg.guards.max_broken_share),
        model=cfg.env.model,
        pixels=pixel_options(cfg),
        observation_history=cfg.env.observation_history,
        randomization=randomization,
        disturbance=disturbance,
    )


def physics_options(cfg: EnvSection, num_threads: int) -> PhysicsOptions:
    """What the config tells the physics."""
    return PhysicsOptions(
        num_threads=num_threads,
        mjx_impl=cfg.mjx_impl,
        max_contacts=cfg.max_contacts,
        max_constraints=cfg.max_constraints,
    )


def pixel_options(cfg: ExperimentConfig) -> PixelOptions | None:
    """What the run's worlds are drawn as, if they are."""
    return PixelOptions(**cfg.env.pixels.model_dump()) if cfg.env.pixels else None


def evaluation_seed(cfg: ExperimentConfig) -> int:
    """A seed of worlds that training with a seed near `experiment.seed` has not seen."""
    return cfg.experiment.seed + SEED_OFFSET
