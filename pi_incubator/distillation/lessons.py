"""Teachers and the worlds that they teach in: one task each, one student for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.algorithms import make_policy
from pi_incubator.checkpoint import ALONE, POLICY, Pinned, pin
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.distillation import DistillationSettings
from pi_incubator.distillation.teacher import Teacher
from pi_incubator.distributed import Distributed
from pi_incubator.envs import evaluation_env
from pi_incubator.errors import UserError
from pi_incubator.networks import make_network
from pi_incubator.policies.actor_critic import ValueFunction
from pi_incubator.policies.policy import Policy
from pi_incubator.run_folder import open_run

CRITIC = "critic"
"""The part of a checkpoint that holds a value function."""
COMMON = ("action_dim", "action_low", "action_high", "joint_names", "control_hz")
"""What teachers and student must agree on beside the observations."""


@dataclass(frozen=True)
class Lesson:
    """One teacher in worlds of its task."""

    cfg: ExperimentConfig
    """The student's settings with the teacher's task and this lesson's number of worlds."""
    teacher: Teacher
    env: VecEnv


def lesson_configs(cfg: ExperimentConfig, settings: DistillationSettings) -> list[ExperimentConfig]:
    """The student's settings with each teacher's task and share of the worlds.

    Raises:
        UserError: a teacher is no run, or has no checkpoint.
    """
    configs = []
    shares = split_worlds(cfg.env.num_envs, settings.weights or (1.0,) * len(settings.teachers))
    for index, (run, num_envs) in enumerate(zip(settings.teachers, shares, strict=True)):
        env = open_run(run)[0].env
        kept = ("name", "model", "model_root", "limits", "task")
        task = {name: getattr(env, name) for name in kept} | {"num_envs": num_envs}
        # Other lessons have other random numbers.
        experiment = cfg.experiment.model_copy(update={"seed": cfg.experiment.seed + index})
        changes = {"env": cfg.env.model_copy(update=task), "experiment": experiment}
        configs.append(cfg.model_copy(update=changes))
    return configs


def split_worlds(num_envs: int, weights: Sequence[float]) -> list[int]:
    """Worlds of each lesson: by weight, at least one each, `num_envs` together."""
    exact = [1 + (num_envs - len(weights)) * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_rest = sorted(range(len(weights)), key=lambda index: shares[index] - exact[index])
    for index in by_rest[: num_envs - sum(shares)]:
        shares[index] += 1
    return shares


def load_teacher(run: str, spec: EnvSpec, value_coef: float, distributed: Distributed = ALONE) -> Teacher:
    """The policy of `run`, checked to see in worlds of `spec` what it was trained on.

    All ranks call it and get the weights of one checkpoint, which rank 0 reads.

    Raises:
        SettingError: `value_coef` is above 0, and it has no value function.
        UserError: it has no whole checkpoint, or cannot act in these worlds.
    """
    cfg, folder = open_run(run)
    worlds = evaluation_env(cfg, 1, spec.device)
    worlds.close()
    policy = make_policy(cfg, worlds.spec)
    check_same(f"{folder.path}: the teacher", worlds.spec, spec, policy.normalizer)
    pinned: Pinned = distributed.broadcast(pin(folder, (POLICY, CRITIC)) if distributed.is_main else None)
    pinned.load(POLICY, policy)
    return Teacher(folder.path.name, policy, _load_critic(cfg, pinned, worlds.spec, policy, value_coef))


def _load_critic(
    cfg: ExperimentConfig, pinned: Pinned, spec: EnvSpec, policy: Policy, value_coef: float
) -> ValueFunction | None:
    """The value function that was trained with `policy`; None where the algorithm has none."""
    if CRITIC not in pinned.states:
        if value_coef:
            problem = f"the teacher {pinned.checkpoint.run} has no value function"
            raise SettingError("algorithm.value_coef", value_coef, problem, "set it to 0")
        return None
    normalizes = getattr(cfg.algorithm, "normalize_value", False)
    critic = ValueFunction(make_network(cfg.network, spec), policy, normalizes).to(spec.device)
    pinned.load(CRITIC, critic)
    return critic


def check_same(who: str, its: EnvSpec, students: EnvSpec, groups: Iterable[str]) -> None:
    """Check that `who` meets the student's observations, actions and joints.

    Raises:
        UserError: it does not.
    """
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
