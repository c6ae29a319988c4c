"""Build an env by name: task, backend and device."""

from __future__ import annotations

from dataclasses import replace

import torch

from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions, UnsupportedModelError
from envs_gpu.randomize import Randomization
from envs_gpu.sim_env import SimEnv
from envs_gpu.tasks import TASKS
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
    randomization: Randomization = Randomization(),  # noqa: B008 - frozen
    observation_history: int = 1,
) -> VecEnv:
    """`num_envs` worlds of the task `name`, or of the env `family/name`; see `SimEnv` for the arguments.

    Raises:
        UnknownNameError: no such task, env or backend; the message suggests the nearest.
        UnsupportedModelError: the backend cannot run this task.
        ZooError: the family's package is not installed, or a policy cannot handle the env.
        RandomizationError: the task's model cannot have what `randomization` describes.
    """
    if is_zoo_name(name):
        if not randomization.is_off or observation_history > 1:
            problem = f"{name} brings its own physics and observations, which cannot be randomized or stacked"
            raise ZooError(problem, "leave randomization out and env.observation_history at 1")
        family, env_name = find(name)
        return family.make(env_name, num_envs, device, seed, first_world)
    chosen, _ = choose_backend(backend, device)
    physics_class = BACKENDS.get(chosen)
    task = TASKS.get(name)()
    runs_warp_in_mjx = chosen == "mjx" and options.mjx_impl == "warp"  # it can what MuJoCo Warp can
    if (reason := task.unsupported.get(chosen)) and not runs_warp_in_mjx:
        raise UnsupportedModelError(f"{name} does not run on backend {chosen}: {reason}")
    options = replace(options, per_world=randomization.model_fields)
    if chosen == "newton":
        options = replace(options, mjcf=task.scene().to_xml())
    return SimEnv(
        name,
        task,
        lambda model: physics_class(model, num_envs, device, options),
        device,
        seed,
        first_world,
        compiled,
        randomization,
        observation_history,
    )
