"""Rollouts of a policy in a learned model, judged by the task's own functions.

Letters: H imagined steps, B rollouts, W width of a row (see `envs_gpu.imagination`), A actions, D observation
width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs_gpu.imagination import Imagination
from pi_incubator.policies.squashed_gaussian import SquashedGaussian, SquashedGaussianPolicy
from pi_incubator.world_models.dynamics import Dynamics


class Noise(NamedTuple):
    """What is random in a rollout."""

    action: Tensor
    """`[H, B, A]` standard normal."""
    observation: Tensor
    """`[H, B, D]` standard normal times the noise's size, in standard deviations of the observation."""
    task: Tensor
    """`[B]` int64, from which the task's random numbers are computed."""


class Rollout(NamedTuple):
    """H imagined steps; differentiable by the policy's weights."""

    observation: Tensor
    """`[H + 1, B, D]` what the critic sees before each step and after the last one, normalized."""
    reward: Tensor
    """`[H, B]`."""
    terminated: Tensor
    """`[H, B]` bool; what follows is to be weighed with zero."""
    log_prob: Tensor
    """`[H, B]` of the action in (-1, 1)."""


def imagine(
    imagination: Imagination,
    dynamics: Dynamics,
    policy: SquashedGaussianPolicy,
    critic_group: str,
    start: Tensor,
    noise: Noise,
) -> Rollout:
    """Let the policy act for H steps in the model.

    Args:
        imagination: the task's functions.
        dynamics: the model.
        policy: acts on noisy observations.
        critic_group: the observation group of the critic.
        start: rows `[B, W]` of real states.
        noise: of actions, observations and task; its first dimension is H.
    """
    now = imagination.unpack(start)
    state = policy.initial_state(len(start))
    seen, rewards, terminated, log_probs = [], [], [], []
    groups = policy.normalizer(imagination.observe(now, noise.task))
    for of_action, of_observation in zip(noise.action, noise.observation, strict=True):
        seen.append(groups[critic_group])
        features, _ = policy.encoder(groups[policy.group] + of_observation, state)
        distribution = SquashedGaussian(*policy.before_tanh(features), of_action)
        unit, log_prob = distribution.rsample_and_log_prob()
        qpos, qvel = dynamics(now.qpos, now.qvel, unit)
        judged = imagination.judge(now, policy.to_env_units(unit), qpos, qvel, noise.task)
        now = judged.after
        groups = policy.normalizer(imagination.observe(now, noise.task))
        rewards.append(judged.reward)
        terminated.append(judged.terminated)
        log_probs.append(log_prob)
    seen.append(groups[critic_group])
    return Rollout(*(torch.stack(steps) for steps in (seen, rewards, terminated, log_probs)))
