"""From an experiment's settings to its worlds: those to train in, and those to judge a policy in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from envs_gpu.disturbance import Disturbance
from envs_gpu.draw import Draw
from envs_gpu.errors import SettingError
from envs_gpu.guards import GuardOptions
from envs_gpu.make import check_model_choice, make_env
from envs_gpu.physics.base import PhysicsOptions, UnsupportedModelError
from envs_gpu.pixels import PixelOptions
from envs_gpu.randomize import Delay, Randomization
from envs_gpu.user_model import UserModel
from envs_gpu.vec_env import EnvSpec, VecEnv
from envs_gpu.zoo import ZooError
from pi_incubator import faults
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.models import UNIONS, EnvSection
from pi_incubator.config.randomization import DrawSection, RandomizationSection
from pi_incubator.config.without_effect import is_default, shown, value_of
from pi_incubator.run_folder import RunFolder

MAX_EVALUATION_WORLDS = 1024
EVALUATION_SEED_OFFSET = 1_000_000


def make_training_env(
    cfg: ExperimentConfig, plan: ComputePlan, folder: RunFolder | None = None, first_world: int = 0
) -> VecEnv:
    """The worlds of a run.

    Args:
        cfg: the experiment.
        plan: device, backend and compilation.
        folder: takes dumps of broken worlds; None dumps none.
        first_world: identity of the first world, for the ranks of a distributed run.

    Raises:
        SettingError: the task, its robot, its backend or what is asked of them do not fit together.
    """
    guards = GuardOptions(
        history_steps=cfg.guards.history_steps,
        max_broken_share=cfg.guards.max_broken_share,
        energy_margin=cfg.guards.energy_margin,
        dump_dir=folder.broken if folder and cfg.guards.max_dumps else None,
        max_dumps=cfg.guards.max_dumps,
    )
    with _errors_as_settings(cfg):
        check_model_choice(cfg.env.name, cfg.env.model)
        env = make_env(
            cfg.env.name,
            backend=cfg.env.backend,
            num_envs=cfg.env.num_envs,
            device=plan.device,
            seed=cfg.experiment.seed,
            first_world=first_world,
            options=physics_options(cfg.env, plan.physics_threads),
            compiled=plan.compiled,
            guards=guards,
            model=user_model(cfg.env),
            keyframe=cfg.env.keyframe,
            pixels=pixel_options(cfg),
            episode_length_s=cfg.env.episode_length_s,
            randomization=randomization_of(cfg.randomization),
            observation_history=cfg.env.observation_history,
            task_parameters=cfg.env.task,
        )
    check_actions(cfg, env.spec)
    return faults.spoiled_env(env)


def evaluation_env(
    cfg: ExperimentConfig,
    num_envs: int,
    device: torch.device,
    *,
    randomization: Randomization = Randomization(),  # noqa: B008 - frozen
    disturbance: Disturbance | None = None,
) -> VecEnv:
    """`num_envs` worlds of the run's task to judge a policy in, at most `MAX_EVALUATION_WORLDS`.

    They are not the training worlds, which may be many more than there are episodes to run. They are not
    compiled, which a few thousand steps do not repay. And they are not randomized: every policy is judged in
    the nominal world, so that runs with different randomizations can be compared. The gates of an export ask
    for worlds that differ, with a `randomization` and a `disturbance`.

    Raises:
        SettingError: as `make_training_env`.
    """
    with _errors_as_settings(cfg):
        return make_env(
            cfg.env.name,
            backend=cfg.env.backend,
            num_envs=min(num_envs, MAX_EVALUATION_WORLDS),
            device=device,
            seed=evaluation_seed(cfg),
            options=physics_options(cfg.env, cfg.compute.physics_threads),
            guards=GuardOptions(
                max_broken_share=cfg.guards.max_broken_share, energy_margin=cfg.guards.energy_margin
            ),
            model=user_model(cfg.env),
            keyframe=cfg.env.keyframe,
            pixels=pixel_options(cfg),
            observation_history=cfg.env.observation_history,
            task_parameters=cfg.env.task,
            randomization=randomization,
            disturbance=disturbance,
        )


def check_policy_reads(cfg: ExperimentConfig, groups: Sequence[str]) -> None:
    """Refuse what changes the observations of the group `policy` where the policy reads other `groups`.

    A critic may read them, but they are settings of what the robot senses.

    Raises:
        SettingError: there is such a setting.
    """
    for field in () if "policy" in groups else ("env.observation_history", "randomization.observation_noise"):
        if not is_default(cfg, field):
            acts_on = " and ".join(map(repr, groups))
            problem = f"the policy does not see it: network.name = {cfg.network.name} acts on {acts_on}"
            fix = "remove it, or let the network act on the observation group 'policy'"
            raise SettingError(field, shown(value_of(cfg, field)), problem, fix)


def check_actions(cfg: ExperimentConfig, spec: EnvSpec) -> None:
    """Refuse an algorithm of continuous actions where the env's are discrete.

    Raises:
        SettingError: they are.
    """
    if spec.num_choices is None or cfg.algorithm.takes_choices:
        return
    fitting = [name for name, member in UNIONS["algorithm"].members.items() if member.takes_choices]
    problem = f"it learns continuous actions, and those of {spec.name} are discrete"
    fix = f"set it to {' or '.join(fitting)}, or choose another env"
    raise SettingError("algorithm.name", cfg.algorithm.name, problem, fix)


def evaluation_seed(cfg: ExperimentConfig) -> int:
    """A seed of worlds that training with a seed near `experiment.seed` has not seen."""
    return cfg.experiment.seed + EVALUATION_SEED_OFFSET


def user_model(cfg: EnvSection) -> UserModel | None:
    """The robot of a task that takes any; None where the settings name none."""
    return None if cfg.model is None else UserModel(cfg.model, cfg.model_root, cfg.limits)


def physics_options(cfg: EnvSection, num_threads: int) -> PhysicsOptions:
    """What the settings say about the physics."""
    return PhysicsOptions(
        num_threads=num_threads,
        mjx_impl=cfg.mjx_impl,
        max_contacts=cfg.max_contacts,
        max_constraints=cfg.max_constraints,
    )


def pixel_options(cfg: ExperimentConfig) -> PixelOptions | None:
    """How the worlds are drawn as an observation; None where they are not."""
    return PixelOptions(**cfg.env.pixels.model_dump()) if cfg.env.pixels else None


def randomization_of(section: RandomizationSection) -> Randomization:
    """The env's description of `section`, which has checked itself."""
    fields = {name: getattr(section, name) for name in type(section).model_fields}
    draws = {name: _draw(field) for name, field in fields.items() if isinstance(field, DrawSection)}
    if start := section.initial_state:
        draws |= {f"initial_{name}": _draw(value) for name, value in start if value}
    delay = section.action_delay
    return Randomization(action_delay=Delay(delay.low, delay.high) if delay else None, **draws)


def _draw(section: DrawSection) -> Draw:
    return Draw(**{name: value for name, value in section if value is not None})


@contextmanager
def _errors_as_settings(cfg: ExperimentConfig) -> Iterator[None]:
    """Name the setting of errors that know only what is wrong with the env or its backend."""
    try:
        yield
    except ZooError as error:
        raise SettingError("env.name", cfg.env.name, error.problem, error.fix) from error
    except UnsupportedModelError as error:
        fix = "set it to another backend"
        raise SettingError("env.backend", cfg.env.backend, str(error), fix) from error
