"""What the student kept of its teachers, and how small it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pi_incubator.config import ExperimentConfig
from pi_incubator.distillation.lessons import Lesson
from pi_incubator.distillation.teacher import num_parameters
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.evaluation.table import Rows, show
from pi_incubator.envs import evaluation_env, evaluation_seed
from pi_incubator.networks._actor_critic import ActorCritic


@dataclass(frozen=True)
class Size:
    """Parameters of a policy."""

    parameters: int
    """Actor, critic and standard deviation."""
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


def size_of(policy: ActorCritic) -> Size:
    """How large `policy` is."""
    return Size(num_parameters(policy), num_parameters(policy.as_onnx()))


def size_rows(student: ActorCritic, lessons: Sequence[Lesson]) -> Rows:
    """The student's parameters beside each teacher's, for a table."""
    policies = {"student": student} | {lesson.teacher.name: lesson.teacher.policy for lesson in lessons}
    return {name: asdict(size_of(policy)) for name, policy in policies.items()}


def compare(cfg: ExperimentConfig, lesson: Lesson, student: ActorCritic) -> Comparison:
    """Judge student and teacher in nominal worlds of the lesson's task."""
    number, seed = cfg.evaluation.num_episodes, evaluation_seed(cfg)
    worlds = evaluation_env(lesson.cfg, number, lesson.env.device)
    student.eval()
    try:
        policies = (lesson.teacher.policy, student)
        returns = [evaluate(worlds, policy, number, seed).summary()["return"] for policy in policies]
    finally:
        worlds.close()
    return Comparison(
        lesson.teacher.name,
        lesson.cfg.env.name,
        number,
        size_of(lesson.teacher.policy),
        size_of(student),
        returns[0]["mean"],
        returns[0]["std"],
        returns[1]["mean"],
        returns[1]["std"],
    )
