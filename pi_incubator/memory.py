"""How much memory a run needs, about, told before any of it is allocated.

Rather low than high: what libraries keep for themselves and allocators round up is not counted, so a run that
is not refused may still run out. That error names the same settings.

Letters: N worlds, T horizon, D observation width, A actions, S state width, B minibatch size, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil
import torch

from envs_gpu.make import choose_backend
from envs_gpu.vec_env import VecEnv
from envs_gpu.zoo import is_zoo_name
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.networks import make_network
from pi_incubator.trainers.on_policy import make_training_env

BYTES = 4
"""Of a float32."""
OUT_OF_MEMORY = ("DefaultCPUAllocator", "Failed to allocate", "RESOURCE_EXHAUSTED")
"""In the messages of torch on a CPU, of Warp and of XLA."""
# Arrays as wide as what a rollout stores of a step: the rollout, its shuffled copy for an epoch. Overlap
# learns from another.
ROLLOUT_COPIES = 2
# Arrays as wide as the state that the env keeps of a world: of this step, of the last, and in flight.
WORLD_COPIES = 8
# Constraints make most of a world in Warp and MJX: each row of the Jacobian is nv wide, and kept twice.
MATRIX_COPIES = 2
# Weights, gradients and Adam's two moments.
PARAMETER_COPIES = 4
# Outputs of each layer, kept for the gradient, and the gradient of them.
ACTIVATION_COPIES = 3


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run allocates on its device, beside what libraries take to be loaded."""

    rollout: int
    worlds: int
    learner: int

    @property
    def total(self) -> int:
        return self.rollout + self.worlds + self.learner


def estimate(cfg: ExperimentConfig, device: torch.device) -> MemoryEstimate:
    """What `cfg` needs on `device`; builds one world on the C backend to see the sizes.

    Raises:
        ConfigError: as `make_training_env`.
    """
    env = _one_world(cfg)
    policy = make_network(cfg.network, env.spec)
    num_envs, horizon = cfg.env.num_envs, cfg.algorithm.horizon
    observed = {
        group: math.prod(env.spec.obs_shape(group)) * env.spec.obs_dtype(group).itemsize
        for group in (*env.spec.obs_dims, *(("pixels",) if cfg.env.pixels else ()))
    }
    stored = sum(observed[group] for group in policy.groups) + BYTES * (2 * env.spec.action_dim + 8)
    backend, _ = choose_backend(cfg.env.backend, device, cfg.env.name)
    world = WORLD_COPIES * sum(observed.values()) + _physics_bytes(getattr(env, "physics", None), backend)
    num_parameters = sum(parameter.numel() for parameter in policy.parameters())
    # Every unit of a layer costs its row of weights; pixels are far wider inside than their features.
    units = sum(len(weight) for weight in policy.parameters() if weight.dim() > 1)
    drawn = observed.get("pixels", 0) * max(cfg.network.channels) if cfg.env.pixels else 0
    sample = ACTIVATION_COPIES * (BYTES * units + drawn)
    # Acting keeps no gradients, but sees all worlds at once.
    batch = max(min(cfg.algorithm.minibatch_size, num_envs * horizon), num_envs // ACTIVATION_COPIES)
    # What a policy remembers of each world now and did at first; a copy of a rollout has it at every step.
    remembered = BYTES * policy.state_width * (2 + horizon * cfg.training.overlap)
    env.close()
    return MemoryEstimate(
        rollout=num_envs * ((ROLLOUT_COPIES + cfg.training.overlap) * horizon * stored + remembered),
        worlds=num_envs * world,
        learner=PARAMETER_COPIES * BYTES * num_parameters + batch * sample,
    )


def _one_world(cfg: ExperimentConfig) -> VecEnv:
    alone = cfg.env.model_copy(update={"num_envs": 1, "backend": "mujoco"})
    plan = ComputePlan(torch.device("cpu"), "mujoco", 1, 1, compiled=False, reasons=())
    return make_training_env(cfg.model_copy(update={"env": alone}), plan)


def free_bytes(device: torch.device) -> int:
    """Memory that `device` can still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_memory(cfg: ExperimentConfig, device: torch.device) -> MemoryEstimate | None:
    """The estimate of a run that fits; None for envs written elsewhere, whose physics nobody can look into.

    Raises:
        ConfigError: it exceeds the memory that is free; the message says how many worlds would fit.
    """
    if is_zoo_name(cfg.env.name):
        return None
    needed, free = estimate(cfg, device), free_bytes(device)
    if needed.total <= free:
        return needed
    fix = f"set {_that_fits(cfg, needed, free)} or shorten algorithm.horizon"
    problem = f"needs about {_gb(needed.total)} GB, {_gb(free)} GB are free on {device.type}"
    raise ConfigError("memory", "env.num_envs", cfg.env.num_envs, problem=problem, fix=fix)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; torch on a CPU, Warp and XLA raise a RuntimeError with words of their own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in OUT_OF_MEMORY)


def out_of_memory(cfg: ExperimentConfig, device: torch.device) -> ConfigError:
    """The error of a run that was told it would fit, and did not."""
    fix = f"lower it, or algorithm.minibatch_size = {cfg.algorithm.minibatch_size}, or algorithm.horizon"
    problem = f"{device.type} ran out of memory ({_gb(free_bytes(device))} GB are free)"
    return ConfigError("memory", "env.num_envs", cfg.env.num_envs, problem=problem, fix=fix)


def _physics_bytes(physics: object, backend: str) -> int:
    """What a world of our own backends takes; C MuJoCo keeps only states, the others every matrix."""
    model = getattr(physics, "model", None)
    if model is None:
        return 0
    state = model.nq + 2 * model.nv + model.na + model.nu + model.nsensordata + 1
    if backend == "mujoco":
        return 2 * BYTES * WORLD_COPIES * state
    num_colliding = int(((model.geom_contype | model.geom_conaffinity) != 0).sum())
    rows = 4 * (model.npair + num_colliding) + 2 * model.njnt
    bodies = 40 * (model.nbody + model.ngeom)
    return BYTES * (WORLD_COPIES * state + MATRIX_COPIES * model.nv * (model.nv + rows) + bodies)


def _that_fits(cfg: ExperimentConfig, needed: MemoryEstimate, free: int) -> str:
    """At most so many worlds, a power of two; or what else to lower."""
    each = (needed.total - needed.learner) / cfg.env.num_envs
    most = int((free - min(needed.learner, free // 2)) / each)
    return f"at most {2 ** (most.bit_length() - 1)}" if most else "a smaller network"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g}"
