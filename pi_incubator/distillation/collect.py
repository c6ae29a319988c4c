"""Collection for a student: worlds in which it or its teacher acts, and the teacher's labels there.

Letters: N worlds, A actions, S state width, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pi_incubator.config.algorithms.distillation import DistillationSettings
from pi_incubator.distillation.buffer import FIRST_STATE, OBSERVATION, STARTS, LabelBuffer
from pi_incubator.distillation.lessons import Lesson
from pi_incubator.distillation.teacher import FEATURES, MEAN, STD
from pi_incubator.layers.encoder import restarted
from pi_incubator.policies.actor_critic import ActorCritic


class Collector:
    """Steps a lesson's worlds, T steps at a time from where they stand.

    Teacher and student each carry their own state through every world, whoever acts there.

    Args:
        settings: horizon, exploration and what is stored.
        lesson: whose env is stepped.
        student: its normalizer sees every observation, unless it is the teacher's.
    """

    def __init__(self, settings: DistillationSettings, lesson: Lesson, student: ActorCritic) -> None:
        self.settings, self.lesson, self.student = settings, lesson, student
        num_worlds = lesson.env.num_envs
        self._state = student.initial_state(num_worlds)
        self._teacher_state = lesson.teacher.initial_state(num_worlds)
        self._starts = torch.zeros(num_worlds, dtype=torch.bool, device=self._state.device)

    @torch.no_grad()
    def collect(self, buffer: LabelBuffer, teacher_share: float) -> None:
        """Add T steps of every world to `buffer`: one by one, or as sequences for a student with a state.

        Args:
            buffer: is added to.
            teacher_share: the expected share of the worlds in which the teacher acts for these T steps.
        """
        env = self.lesson.env
        teacher_acts = torch.rand(env.num_envs, 1, device=env.device) < teacher_share
        first_state, sequence = self._state, []
        for _ in range(self.settings.horizon):
            rows = self._step(teacher_acts)
            if self.student.state_width:
                sequence.append(rows)
            else:
                buffer.add(rows)
        if sequence:
            stacked = {name: torch.stack([rows[name] for rows in sequence], 1) for name in sequence[0]}
            buffer.add(stacked | {FIRST_STATE: first_state})

    def _step(self, teacher_acts: Tensor) -> dict[str, Tensor]:
        """One step of every world; returns the observations before it and their labels, `[N, ...]`."""
        env, student, settings = self.lesson.env, self.student, self.settings
        obs = {name: value.clone() for name, value in env.obs.items()}
        labels, teacher_state = self.lesson.teacher.label(obs, self._teacher_state)
        if settings.normalizer == "gather":
            student.policy.normalizer.observe(obs)
        rows = {OBSERVATION + group: obs[group] for group in student.groups} | labels
        if not settings.feature_coef:
            del rows[FEATURES]
        if student.state_width:
            rows[STARTS] = self._starts
        mean, std, state = student.moments(obs, self._state)
        mean = torch.where(teacher_acts, labels[MEAN], mean)
        std = torch.where(teacher_acts, labels[STD], std)
        result = env.step(mean + settings.exploration * std * torch.randn_like(mean))
        self._starts = result.terminated | result.truncated
        self._state = restarted(state, self._starts)
        self._teacher_state = restarted(teacher_state, self._starts)
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """The states of teacher and student; nothing where neither has one."""
        states = {"student": self._state, "teacher": self._teacher_state}
        kept = {name: state for name, state in states.items() if state.shape[1]}
        return kept | {"starts": self._starts} if kept else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        device = self._starts.device
        self._starts = state["starts"].to(device)
        self._state = state.get("student", self._state).to(device)
        self._teacher_state = state.get("teacher", self._teacher_state).to(device)
