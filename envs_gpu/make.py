"""Build an env by name: task, backend and device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import mujoco
import torch

from envs_gpu.disturbance import Disturbance, DisturbedPhysics
from envs_gpu.errors import ModelChoiceError
from envs_gpu.guards import GuardOptions
from envs_gpu.parameters import Parameter, unknown_parameter
from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions, UnsupportedModelError, scene_text
from envs_gpu.physics.mujoco import available_cores
from envs_gpu.pixels import PixelOptions, PixelStack
from envs_gpu.randomize import Randomization
from envs_gpu.sim_env import SimEnv
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.base import Task
from envs_gpu.user_model import UserModel
from envs_gpu.vec_env import VecEnv
from envs_gpu.zoo import ZooError, find, is_zoo_name


def choose_backend(backend: str, device: torch.device, name: str = "") -> tuple[str, str]:
    """The backend to use for the env `name` and the reason in a sentence; only `auto` is a choice."""
    if is_zoo_name(name):
        family = name.partition("/")[0]
        return family, f"backend {family}: the physics that its envs bring along"
    if backend != "auto":
        return backend, f"backend {backend}: as asked for"
    if device.type == "cuda":
        return "warp", "backend warp: the fastest on CUDA, and its step is captured as one graph"
    return "mujoco", "backend mujoco: on a CPU the C engine is several times faster than Warp and MJX"


def lacks_device(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run on `device`, which torch has; None if it can."""
    if backend in ("mjx", "brax", "playground") and device.type == "cuda":
        import jax  # slow to import, and only this check needs it

        try:
            jax.devices("cuda")
        except RuntimeError:
            return "torch finds a CUDA device, and the installed JAX has none"
    return None


def check_model_choice(name: str, model: str | UserModel | None) -> None:
    """Check that a config names a robot if, and only if, its task takes one.

    Raises:
        UnknownNameError: no such task; the message suggests the nearest.
        ModelChoiceError: it does not.
    """
    model = model.name if isinstance(model, UserModel) else model
    takes_model = not is_zoo_name(name) and TASKS.get(name).takes_model
    if takes_model and model is None:
        raise ModelChoiceError(model, f"{name} needs a robot", "set it to the path of an MJCF file")
    if model is not None and not takes_model:
        fix = "set it to null, or env.name to a task for any robot, such as hold_pose"
        raise ModelChoiceError(model, f"{name} brings its own robot", fix)


def make_task(name: str, model: str | UserModel | None = None, keyframe: str | int | None = None) -> Task:
    """The task called `name`; `model` is the robot of a task that takes any, None its example.

    `keyframe` is the name or number of the robot's pose, None its first.

    Raises:
        UnknownNameError: no such task; the message suggests the nearest.
        ModelChoiceError: the task takes no `model`.
    """
    if model is None:
        return TASKS.get(name)()
    check_model_choice(name, model)
    return TASKS.get(name)(model=model, keyframe=keyframe)


def task_parameters(name: str) -> tuple[Parameter, ...]:
    """What `env.task` may set for the env `name`; none for an env that brings its own rules.

    It imports the task, and with it torch.

    Raises:
        UnknownNameError: no such task; the message suggests the nearest.
    """
    parameters: tuple[Parameter, ...] = () if is_zoo_name(name) else TASKS.get(name).parameters
    return parameters


def make_env(
    name: str,
    *,
    backend: str = "auto",
    num_envs: int,
    device: torch.device,
    seed: int = 0,
    first_world: int = 0,
    options: PhysicsOptions = PhysicsOptions(),  # noqa: B008 - frozen
    compiled: bool = False,
    guards: GuardOptions = GuardOptions(),  # noqa: B008 - frozen
    model: str | UserModel | None = None,
    keyframe: str | int | None = None,
    pixels: PixelOptions | None = None,
    episode_length_s: float | None = None,
    randomization: Randomization = Randomization(),  # noqa: B008 - frozen
    observation_history: int = 1,
    disturbance: Disturbance | None = None,
    task_parameters: Mapping[str, float] = MappingProxyType({}),
) -> VecEnv:
    """`num_envs` worlds of the task `name`, or of the env `family/name`; see `SimEnv` for the arguments.

    `model` is a robot, or its name as in `env.model`, for the tasks that take any; without it they take an
    example.
    `keyframe` is the name or number of its pose, `qpos0` the reference configuration, None the first one.
    `pixels` adds a group of that name to the observations; `episode_length_s` replaces the task's own.
    `disturbance` is what is wrong with each world, for our own tasks on the backend `mujoco`.

    Raises:
        UnknownNameError: no such task, env or backend; the message suggests the nearest.
        ModelChoiceError: `model` is given and the task takes none.
        ModelError: the scene cannot be compiled.
        UnsupportedModelError: the backend cannot run this task.
        ZooError: the family's package is not installed, or a policy cannot handle the env.
        PixelError: the worlds cannot be drawn as asked for.
        RandomizationError: the task's model cannot have what `randomization` describes.
        SettingError: the task has no such parameter as in `task_parameters`, or it cannot have this value; or
            the name or the limits of `model` fit nothing.
    """
    if device.type == "cuda" and device.index is None:  # Warp and JAX ask for the index
        device = torch.device("cuda", torch.cuda.current_device())
    if is_zoo_name(name):
        _check_zoo_choice(
            name, model, pixels, episode_length_s, randomization, observation_history, task_parameters
        )
        family, env_name = find(name)
        env = family.make(env_name, num_envs, device, seed, first_world)
        env.book.share.limit = guards.max_broken_share
        return env
    chosen, _ = choose_backend(backend, device)
    physics_class = BACKENDS.get(chosen)
    task = make_task(name, model, keyframe)
    runs_warp_in_mjx = chosen == "mjx" and options.mjx_impl == "warp"  # it can what MuJoCo Warp can
    if (reason := task.unsupported.get(chosen)) and not runs_warp_in_mjx:
        raise UnsupportedModelError(f"{name} does not run on backend {chosen}: {reason}")
    options = replace(options, per_world=randomization.model_fields)
    if chosen == "newton":
        options = replace(options, mjcf=scene_text(task.scene()))
    if disturbance is not None:
        if chosen != "mujoco":
            raise UnsupportedModelError(f"backend {chosen} knows no disturbance; take mujoco")
        physics_class = functools.partial(DisturbedPhysics, disturbance=disturbance)
    return SimEnv(
        name,
        task,
        lambda model: physics_class(model, num_envs, device, replace(options, start_act=task.start_act)),
        device,
        seed,
        first_world,
        compiled,
        guards,
        _pixel_maker(pixels, num_envs, device, options),
        randomization,
        observation_history,
        episode_length_s,
        task_parameters,
    )


def _check_zoo_choice(
    name: str,
    model: str | UserModel | None,
    pixels: PixelOptions | None,
    episode_length_s: float | None,
    randomization: Randomization,
    observation_history: int,
    task_parameters: Mapping[str, float],
) -> None:
    """Refuse what only our own tasks can have; errors as of `make_env`."""
    if model is not None:
        check_model_choice(name, model)
    if pixels or episode_length_s:
        given = "env.pixels" if pixels else "env.episode_length_s"
        raise ZooError(f"{given} is for our own tasks only", f"set {given} to null")
    if not randomization.is_off or observation_history > 1:
        problem = f"{name} brings its own physics and observations, which cannot be randomized or stacked"
        raise ZooError(problem, "leave randomization out and env.observation_history at 1")
    for parameter, value in task_parameters.items():
        raise unknown_parameter(name, parameter, value, {})


def _pixel_maker(
    pixels: PixelOptions | None, num_envs: int, device: torch.device, options: PhysicsOptions
) -> Callable[[mujoco.MjSpec], PixelStack] | None:
    if pixels is None:
        return None
    num_threads = options.num_threads or available_cores()
    return lambda spec: PixelStack(spec, pixels, num_envs, device, num_threads)
