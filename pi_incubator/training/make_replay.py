"""The replay buffer that the settings of an off-policy algorithm ask for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import VecEnv
from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.data.replay.her import Her
from pi_incubator.data.replay.prioritized import Prioritized
from pi_incubator.data.replay.replay import Replay
from pi_incubator.data.replay.ring import Ring
from pi_incubator.data.replay.sequences import Windows
from pi_incubator.data.sharded import ShardedRandom


def make_replay(
    settings: ReplaySettings,
    capacity: int,
    env: VecEnv,
    groups: Iterable[str],
    random: ShardedRandom,
    state_width: int,
) -> Replay:
    """An empty buffer for the steps of `env`.

    Args:
        settings: which one, and its sizes.
        capacity: most steps that are held, over all worlds.
        env: the training worlds.
        groups: the observation groups that are stored.
        random: samples.
        state_width: S of the policy, which windows begin with.

    Raises:
        SettingError: hindsight needs goals, and the env has none.
    """
    what = (capacity, env.spec, groups, random)
    options: dict[str, Any] = {"n_step": settings.n_step, "gamma": settings.gamma}
    options["dtype"] = getattr(torch, settings.storage)
    match settings.replay:
        case "uniform":
            return Ring(*what, **options)
        case "prioritized":
            exponent, correction = settings.priority_exponent, settings.priority_correction
            return Prioritized(*what, **options, exponent=exponent, correction=correction)
        case "her":
            return Her(*what, **options, **_goals_of(env, groups), share=settings.relabelled_share)
        case "sequences":
            sizes = {"length": settings.sequence_length, "burn_in": settings.burn_in}
            return Windows(*what, **options, **sizes, state_width=state_width)


def _goals_of(env: VecEnv, groups: Iterable[str]) -> dict[str, Any]:
    """What `Her` has to know of the env."""
    goals = env.goals(tuple(groups))
    if goals is None:
        problem = f"{env.spec.name} has no goals"
        fix = "set it to uniform, or choose a task with goals, such as yam_reach"
        raise SettingError("algorithm.replay", "her", problem, fix)
    longest = env.spec.max_episode_steps
    return {"goals": goals, "parameters": env.parameters, "max_episode_steps": longest}
