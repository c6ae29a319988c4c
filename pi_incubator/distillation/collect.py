"""Collection for a student: worlds that it or its teacher leads, and what the teacher says there.

Letters: N worlds, A actions, S width of a state, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pi_incubator.config import ExperimentConfig
from pi_incubator.distillation.lessons import Lesson
from pi_incubator.distillation.samples import BEGINS, FIRST_STATE, OBSERVATION, Samples
from pi_incubator.networks._actor_critic import ActorCritic
from pi_incubator.networks._stateful import StatefulActorCritic, restarted


class Collector:
    """Steps a lesson's worlds, T steps at a time from where they stand.

    Teacher and student each remember what they saw there, if they have a memory, whoever led.

    Args:
        cfg: reads `algorithm.horizon` and the section `distillation`.
        lesson: whose env is stepped.
        student: its normalizer sees every observation, unless it is the teacher's.
    """

    def __init__(self, cfg: ExperimentConfig, lesson: Lesson, student: ActorCritic) -> None:
        self.cfg, self.lesson, self.student = cfg, lesson, student
        number, zeros = lesson.env.num_envs, student.log_std.new_zeros
        self._state = zeros(number, student.state_width)
        self._teacher_state = zeros(number, lesson.teacher.policy.state_width)
        self._begins = torch.zeros(number, dtype=torch.bool, device=self._state.device)

    @torch.no_grad()
    def collect(self, samples: Samples, led_by_teacher: float) -> None:
        """Add T steps of every world to `samples`: one by one, or as sequences for a student with a memory.

        Args:
            samples: are added to.
            led_by_teacher: the expected share of the worlds that the teacher leads for these T steps.
        """
        env = self.lesson.env
        teacher_leads = torch.rand(env.num_envs, 1, device=env.device) < led_by_teacher
        first_state, sequence = self._state, []
        for _ in range(self.cfg.algorithm.horizon):
            rows = self._step(teacher_leads)
            if self.student.state_width:
                sequence.append(rows)
            else:
                samples.add(rows)
        if sequence:
            stacked = {name: torch.stack([rows[name] for rows in sequence], 1) for name in sequence[0]}
            samples.add(stacked | {FIRST_STATE: first_state})

    def _step(self, teacher_leads: Tensor) -> dict[str, Tensor]:
        """One step of every world; returns what was seen and said before it, `[N, ...]` by name."""
        env, student, cfg = self.lesson.env, self.student, self.cfg.distillation
        obs = {name: value.clone() for name, value in env.obs.items()}
        labels, teacher_state = self.lesson.teacher.label(obs, self._teacher_state)
        if cfg.normalizer == "gather":
            student.gather(obs)
        rows = {OBSERVATION + group: obs[group] for group in student.groups} | labels._asdict()
        if not cfg.feature_coef:
            del rows["features"]
        if student.state_width:
            rows[BEGINS] = self._begins
        mean, std, state = act(student, obs, self._state)
        mean = torch.where(teacher_leads, labels.mean, mean)
        std = torch.where(teacher_leads, labels.std, std)
        result = env.step(mean + cfg.exploration * std * torch.randn_like(mean))
        self._begins = result.terminated | result.truncated
        self._state = restarted(state, self._begins)
        self._teacher_state = restarted(teacher_state, self._begins)
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """What teacher and student remember; nothing where neither has a memory."""
        states = {"student": self._state, "teacher": self._teacher_state}
        remembered = {name: state for name, state in states.items() if state.shape[1]}
        return remembered | {"begins": self._begins} if remembered else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        device = self._begins.device
        self._begins = state["begins"].to(device)
        self._state = state.get("student", self._state).to(device)
        self._teacher_state = state.get("teacher", self._teacher_state).to(device)


def act(policy: ActorCritic, obs: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of the action for raw observations, each `[N, A]`, and the next state.

    Args:
        policy: with a memory or without one.
        obs: raw groups.
        state: `[N, S]`; S is 0 without a memory.
    """
    if not isinstance(policy, StatefulActorCritic):
        encoded = policy.encode(policy.normalize(obs))
        return *policy.distribution(encoded[policy.actor_features]), state
    decision = policy.act(obs, torch.zeros_like(policy.action_low.expand(len(state), -1)), state)
    assert decision.state is not None
    return decision.action, policy.log_std.exp().expand_as(decision.action), decision.state
