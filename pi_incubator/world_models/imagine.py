"""Rollouts of a policy in a learned model, judged by the task's own functions.

Letters: H imagined steps, B rollouts, W width of a row (see `envs_gpu.imagination`), A actions, D
observation width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from envs_gpu.imagination import Imagination, Imagined
from pi_incubator.layers.encoder import observation_of
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
    """`[H, B]` bool; the steps behind it are no longer part of the rollout."""
    log_prob: Tensor
    """`[H, B]` of the action in (-1, 1)."""


class Moment(NamedTuple):
    """The rollouts between two steps: their states, and what is observed of them."""

    state: Imagined
    groups: dict[str, Tensor]
    """What is observed of it without noise, normalized, name -> `[B, D]`."""


ImaginedStep = Callable[[Moment, Tensor, Tensor, Tensor], tuple[Moment, Tensor, Tensor, Tensor]]
"""From a moment, and noise of action, observation and task, to the next moment, the reward `[B]`, whether the
task terminated `[B]`, and the log-probability of the action `[B]`."""


def make_imagined_step(
    imagination: Imagination, dynamics: Dynamics, policy: SquashedGaussianPolicy
) -> ImaginedStep:
    """One step of the policy in the model, which is judged by the task's functions."""

    def imagined_step(
        now: Moment, of_action: Tensor, of_observation: Tensor, of_task: Tensor
    ) -> tuple[Moment, Tensor, Tensor, Tensor]:
        state = of_action.new_zeros(len(of_action), 0)
        features, _ = policy.encoder(observation_of(now.groups, policy.groups) + of_observation, state)
        distribution = SquashedGaussian(*policy.before_tanh(features), of_action)
        unit, log_prob = distribution.rsample_and_log_prob()
        qpos, qvel = dynamics(now.state.qpos, now.state.qvel, unit)
        judged = imagination.judge(now.state, policy.to_env_units(unit), qpos, qvel, of_task)
        groups = policy.normalizer(imagination.observe(judged.after, of_task))
        return Moment(judged.after, groups), judged.reward, judged.terminated, log_prob

    return imagined_step


def imagine(
    start: Moment, critic_groups: tuple[str, ...], noise: Noise, imagined_step: ImaginedStep
) -> Rollout:
    """Let the policy act for H steps in the model.

    Args:
        start: real states, as `at_states` gives them.
        critic_groups: the observation groups of the critic.
        noise: its first dimension is H.
        imagined_step: of `make_imagined_step`, perhaps compiled.
    """
    now, seen, judged = start, [], []
    for of_action, of_observation in zip(noise.action, noise.observation, strict=True):
        seen.append(observation_of(now.groups, critic_groups))
        now, *step = imagined_step(now, of_action, of_observation, noise.task)
        judged.append(step)
    seen.append(observation_of(now.groups, critic_groups))
    return Rollout(torch.stack(seen), *(torch.stack(values) for values in zip(*judged, strict=True)))


def at_states(
    imagination: Imagination, policy: SquashedGaussianPolicy, rows: Tensor, random: Tensor
) -> Moment:
    """The moment at which the worlds are in the states `rows` `[B, W]`; `random` `[B]` as `Noise.task`."""
    state = imagination.unpack(rows)
    # Laid out in memory as after a step, which compiled code relies on.
    memory = {name: value.contiguous() for name, value in state.memory.items()}
    state = state._replace(qpos=state.qpos.contiguous(), qvel=state.qvel.contiguous(), memory=memory)
    return Moment(state, policy.normalizer(imagination.observe(state, random)))
