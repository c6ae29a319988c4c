"""Build an env by name: task, backend and device."""

from __future__ import annotations

import torch

from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.sim_env import SimEnv
from envs_gpu.tasks import TASKS


def choose_backend(backend: str, device: torch.device) -> tuple[str, str]:
    """The backend to use and the reason in a sentence; only `auto` is a choice."""
    if backend != "auto":
        return backend, f"backend {backend}: as asked for"
    if device.type == "cuda":
        return "warp", "backend warp: the fastest on CUDA, and its step is captured as one graph"
    return "mujoco", "backend mujoco: on a CPU the C engine is several times faster than Warp and MJX"


def lacks_device(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run on `device`, which torch has; None if it can."""
    if backend == "mjx" and device.type == "cuda":
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
) -> SimEnv:
    """`num_envs` worlds of the task `name`; see `SimEnv` for the arguments.

    Raises:
        UnknownNameError: no such task or backend; the message suggests the nearest.
    """
    chosen, _ = choose_backend(backend, device)
    physics_class = BACKENDS.get(chosen)
    return SimEnv(
        name,
        TASKS.get(name)(),
        lambda model: physics_class(model, num_envs, device, options),
        device,
        seed,
        first_world,
        compiled,
    )
