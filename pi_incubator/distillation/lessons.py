"""Teachers and the worlds that they teach in: one task each, one student for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import load_policy
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.distillation.teacher import Teacher
from pi_incubator.errors import UserError
from pi_incubator.envs import evaluation_env
from pi_incubator.networks import make_network
from pi_incubator.networks._actor_critic import ActorCritic
from pi_incubator.run_folder import RunFolder
from pi_incubator.trainers.on_policy import make_training_env

COMMON = ("action_dim", "action_low", "action_high", "joint_names", "control_hz")
"""What teachers and student must agree on beside the observations."""


@dataclass(frozen=True)
class Lesson:
    """One teacher in worlds of its task."""

    cfg: ExperimentConfig
    """The student's settings with the teacher's task and this lesson's number of worlds."""
    teacher: Teacher
    env: VecEnv


def make_lessons(
    cfg: ExperimentConfig,
    plan: ComputePlan,
    folder: RunFolder,
    teachers: Sequence[tuple[ExperimentConfig, RunFolder]],
) -> list[Lesson]:
    """A lesson for each teacher's config and run, in their order; broken worlds are dumped into `folder`.

    Raises:
        ConfigError: there are fewer worlds than teachers, or the env cannot be made.
        UserError: a teacher has no whole checkpoint, or its policy cannot act in the student's worlds.
    """
    shares = split_worlds(cfg, len(teachers))
    lessons = []
    for index, ((teacher_cfg, run), num_envs) in enumerate(zip(teachers, shares, strict=True)):
        lesson_cfg = _lesson_config(cfg, teacher_cfg, num_envs, index)
        env = make_training_env(lesson_cfg, plan, folder)
        policy = _load_teacher(teacher_cfg, run, plan, env.spec)
        lessons.append(Lesson(lesson_cfg, Teacher(run.path.name, policy), env))
    return lessons


def make_student(cfg: ExperimentConfig, plan: ComputePlan, lessons: Sequence[Lesson]) -> ActorCritic:
    """The untrained student of `cfg`, for its own task.

    Raises:
        UserError: a lesson's worlds are not such as the student acts in.
        ConfigError: the student has a memory and a setting that only one without it knows, or the samples of
            one iteration do not fit.
    """
    worlds = evaluation_env(cfg, 1, plan.device)
    student = make_network(cfg.network, worlds.spec)
    worlds.close()
    if student.state_width:
        _check_for_memory(cfg)
    if cfg.distillation.dataset is None:
        _check_buffer(cfg)
    for lesson in lessons:
        where = f"{lesson.teacher.name}: its task {lesson.env.spec.name}"
        _check_same(where, lesson.env.spec, worlds.spec, student.groups)
    return student


def split_worlds(cfg: ExperimentConfig, num_teachers: int) -> list[int]:
    """Worlds of each lesson: by weight, at least one each, `env.num_envs` together.

    Raises:
        ConfigError: there are fewer worlds than teachers.
    """
    total, weights = cfg.env.num_envs, cfg.distillation.weights or (1.0,) * num_teachers
    if total < num_teachers:
        problem = f"each of {num_teachers} teachers needs a world"
        raise ConfigError("config", "env.num_envs", total, problem=problem, fix=f"set it to {num_teachers}")
    exact = [1 + (total - num_teachers) * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_rest = sorted(range(num_teachers), key=lambda index: shares[index] - exact[index])
    for index in by_rest[: total - sum(shares)]:
        shares[index] += 1
    return shares


def _check_buffer(cfg: ExperimentConfig) -> None:
    """Raise ConfigError where an iteration overwrites its own samples: some worlds would teach nothing."""
    size = cfg.distillation.buffer_size
    if size < cfg.batch_size:
        problem = f"is less than the {cfg.batch_size} steps of one iteration"
        fix = f"set it to at least {cfg.batch_size}"
        raise ConfigError("config", "distillation.buffer_size", size, problem=problem, fix=fix)


def _check_for_memory(cfg: ExperimentConfig) -> None:
    """Raise ConfigError for what a student with a memory cannot do."""
    section = cfg.distillation
    if section.dataset:
        problem, fix = "holds single steps, a recurrent student needs sequences", "learn online"
        raise ConfigError("config", "distillation.dataset", section.dataset, problem=problem, fix=fix)
    if section.fake_quantize != "none":
        problem, fix = "rounds the layers of an mlp, not a memory's gates", "set it to none"
        raise ConfigError(
            "config", "distillation.fake_quantize", section.fake_quantize, problem=problem, fix=fix
        )


def _lesson_config(
    cfg: ExperimentConfig, teacher_cfg: ExperimentConfig, num_envs: int, index: int
) -> ExperimentConfig:
    """The teacher's task in the student's settings; other lessons have other random numbers."""
    task = {"name": teacher_cfg.env.name, "model": teacher_cfg.env.model, "num_envs": num_envs}
    experiment = cfg.experiment.model_copy(update={"seed": cfg.experiment.seed + index})
    return cfg.model_copy(update={"env": cfg.env.model_copy(update=task), "experiment": experiment})


def _load_teacher(
    teacher_cfg: ExperimentConfig, run: RunFolder, plan: ComputePlan, spec: EnvSpec
) -> ActorCritic:
    """The policy of `run`, checked to see in worlds of `spec` what it was trained on."""
    worlds = evaluation_env(teacher_cfg, 1, plan.device)
    worlds.close()
    policy = make_network(teacher_cfg.network, worlds.spec)
    _check_same(f"{run.path}: the teacher", worlds.spec, spec, policy.groups)
    load_policy(run, policy)
    return policy


def _check_same(who: str, its: EnvSpec, students: EnvSpec, groups: Iterable[str]) -> None:
    """Raise UserError where `who` meets other observations, actions or joints than the student."""
    fix = "name runs of tasks for the same robot, and give the student the observations of their env section"
    for group in groups:
        here, there = _shape(its, group), _shape(students, group)
        if here != there:
            problem = f"has observations {group!r} of shape {here}, the student's worlds {there}"
            raise UserError(f"{who} {problem}; {fix}")
    for name in COMMON:
        here, there = getattr(its, name), getattr(students, name)
        if here != there:
            raise UserError(f"{who} has {name} = {here}, the student's worlds {there}; {fix}")


def _shape(spec: EnvSpec, group: str) -> tuple[int, ...] | None:
    known = group in spec.obs_dims or (group == "pixels" and spec.pixels_shape)
    return spec.obs_shape(group) if known else None
