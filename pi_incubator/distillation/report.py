"""What the student kept of its teachers, and how small it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from pi_incubator.config import ExperimentConfig
from pi_incubator.distillation.lessons import Lesson
from pi_incubator.distillation.teacher import num_parameters
from pi_incubator.envs import evaluation_env, evaluation_seed
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.evaluation.table import Rows, show
from pi_incubator.policies.actor_critic import ActorCritic, ValueFunction
from pi_incubator.policies.policy import Policy


@dataclass(frozen=True)
class Size:
    """Parameters of a policy."""

    parameters: int
    """Policy and value function."""
    actor_parameters: int
    """Those that travel to the robot: encoder and actor."""


@dataclass(frozen=True)
class Comparison:
    """A student beside one of its teachers, both deterministic, in the same worlds from the same seed."""

    teacher: str
    task: str
    num_episodes: int
    teacher_size: Size
    student_size: Size
    teacher_return: float
    teacher_return_std: float
    """Of the episodes, not of their mean."""
    student_return: float
    student_return_std: float

    @property
    def kept(self) -> float | None:
        """The student's mean return as a share of the teacher's; None where that is not above 0."""
        return self.student_return / self.teacher_return if self.teacher_return > 0 else None

    def sentence(self) -> str:
        """`student keeps X % of the teacher's return with Y % of its parameters`, and of which."""
        size = 100 * self.student_size.parameters / self.teacher_size.parameters
        actor = 100 * self.student_size.actor_parameters / self.teacher_size.actor_parameters
        returns = f"{show(self.student_return)} of {show(self.teacher_return)}"
        kept = f"{100 * self.kept:.1f} % of the teacher's return" if self.kept else f"a return of {returns}"
        with_ = f"{size:.1f} % of its parameters (actor alone: {actor:.1f} %)"
        return f"{self.teacher} on {self.task}: student keeps {kept} with {with_}"

    def as_json(self) -> dict[str, Any]:
        """Everything by name."""
        return asdict(self) | {"return_kept": self.kept}


def size_of(policy: Policy, critic: ValueFunction | None) -> Size:
    """How large `policy` and its value function are."""
    modules = nn.ModuleList([policy] if critic is None else [policy, critic])  # counts what they share once
    return Size(num_parameters(modules), num_parameters(policy.encoder, policy.head))


def size_rows(student: ActorCritic, lessons: Sequence[Lesson]) -> Rows:
    """The student's parameters beside each teacher's, for a table."""
    sizes = {"student": size_of(student.policy, student.critic)}
    sizes |= {
        lesson.teacher.name: size_of(lesson.teacher.policy, lesson.teacher.critic) for lesson in lessons
    }
    return {name: asdict(size) for name, size in sizes.items()}


def compare(cfg: ExperimentConfig, lesson: Lesson, student: ActorCritic) -> Comparison:
    """Judge student and teacher in nominal worlds of the lesson's task."""
    number, seed = cfg.evaluation.num_episodes, evaluation_seed(cfg)
    worlds = evaluation_env(lesson.cfg, number, lesson.env.device)
    student.eval()
    try:
        policies = (lesson.teacher.policy, student.policy)
        returns = [evaluate(worlds, policy, number, seed).summary()["return"] for policy in policies]
    finally:
        worlds.close()
    return Comparison(
        lesson.teacher.name,
        lesson.cfg.env.name,
        number,
        size_of(lesson.teacher.policy, lesson.teacher.critic),
        size_of(student.policy, student.critic),
        returns[0]["mean"],
        returns[0]["std"],
        returns[1]["mean"],
        returns[1]["std"],
    )
