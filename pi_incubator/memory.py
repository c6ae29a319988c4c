"""An estimate of the memory that a run needs, made before any of it is allocated.

The estimate is a lower bound: what libraries keep for themselves and allocators round up is not counted, so a
run that is not refused may still run out of memory. That error names the same settings.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import psutil
import torch
from torch import nn

from envs_gpu.errors import SettingError
from envs_gpu.make import choose_backend
from envs_gpu.vec_env import EnvSpec, VecEnv
from envs_gpu.zoo import is_zoo_name
from pi_incubator.algorithms import make_policy
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.data.datasets.recorder import bytes_per_step, most_steps_in_memory
from pi_incubator.envs import make_training_env
from pi_incubator.launcher import launch_of_environment
from pi_incubator.layers.network import BatchNormNetwork
from pi_incubator.networks import make_network

BYTES = 4
"""Of a float32."""
OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "Storage size calculation overflowed", "numel: integer multiplication overflow"),
    *("Failed to allocate", "RESOURCE_EXHAUSTED"),
)
"""In the messages of torch on a CPU (three), of Warp and of XLA."""
_OTHER_FIELDS = ("env.num_envs", "algorithm.minibatch_size", "algorithm.batch_size")
"""What a user can lower beside the size of the rollout or buffer; not every algorithm has all of them."""
# Arrays as wide as the state that the env keeps of a world: of this step, of the last, and in flight.
WORLD_COPIES = 8
# Constraints make most of a world in Warp and MJX: each row of the Jacobian is nv wide, and kept twice.
MATRIX_COPIES = 2
# Weights, gradients and Adam's two moments.
PARAMETER_COPIES = 4
# Weights and the two moments again, copied on the host while a checkpoint is written beside training.
SAVED_COPIES = 3
# A replay buffer where there are several ranks: itself, and as it is sent and received for a checkpoint.
SENT_COPIES = 3
# Recorded steps: as they wait, and as they are put together to be written.
RECORDED_COPIES = 2
# Outputs of each layer, kept for the gradient, and the gradient of them.
ACTIVATION_COPIES = 3


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run allocates on its device, beside what libraries take to be loaded."""

    storage: int
    """The rollout, or the replay buffer; of several processes on a machine also what a save sends of it."""
    worlds: int
    learning: int
    """Weights, optimizer, their copy for a checkpoint, and the activations of a minibatch."""
    recording: int = 0
    """Recorded steps that wait until they are written."""

    @property
    def total(self) -> int:
        return self.storage + self.worlds + self.learning + self.recording


def estimate(cfg: ExperimentConfig, device: torch.device) -> MemoryEstimate:
    """What `cfg` needs on `device`; builds one world on the C backend to see the sizes.

    Raises:
        SettingError: as `make_training_env`.
    """
    env = _one_world(cfg)
    policy, algorithm = make_policy(cfg, env.spec), cfg.algorithm
    observed = {
        group: math.prod(env.spec.obs_shape(group)) * env.spec.obs_dtype(group).itemsize
        for group in (*env.spec.obs_dims, *(("pixels",) if cfg.env.pixels else ()))
    }
    pixels = observed["pixels"] if "pixels" in policy.normalizer else 0
    stored = sum(observed[group] for group in policy.normalizer) - pixels
    step = algorithm.bytes_per_step(stored, pixels, env.spec.action_dim)
    # The state before the first step and now; a copy of a rollout has it at every step.
    step += BYTES * policy.state_width * algorithm.num_stored_states
    backend, _ = choose_backend(cfg.env.backend, device, cfg.env.name)
    world = WORLD_COPIES * sum(observed.values()) + _physics_bytes(getattr(env, "physics", None), backend)
    # Every unit of a layer costs its row of weights; pixels are far wider inside than their features.
    weights = [weight for weight in policy.parameters() if weight.dim() > 1]
    drawn = observed.get("pixels", 0) * max(len(weight) for weight in weights) if cfg.env.pixels else 0
    # Acting keeps no gradients, but sees all worlds at once.
    batch = max(algorithm.samples_per_update(cfg.env.num_envs), cfg.env.num_envs // ACTIVATION_COPIES)
    sizes = (batch, drawn, device)
    learning = _learning_bytes(policy, *sizes)
    learning += (algorithm.num_networks - 1) * _learning_bytes(_critic_of(cfg, env.spec) or policy, *sizes)
    env.close()
    is_sent = algorithm.saves_steps and launch_of_environment().world_size > 1
    return MemoryEstimate(
        storage=(SENT_COPIES if is_sent else 1) * algorithm.stored_steps(cfg) * step,
        worlds=cfg.env.num_envs * world,
        learning=learning,
        recording=_recording_bytes(cfg, env.spec),
    )


def _recording_bytes(cfg: ExperimentConfig, spec: EnvSpec) -> int:
    """Of the steps that `training.record` keeps in memory; 0 where nothing is recorded."""
    if cfg.training.record is None:
        return 0
    between_saves = cfg.checkpoint.save_every * cfg.steps_per_iteration
    waiting = min(max(most_steps_in_memory(spec), cfg.env.num_envs), between_saves)
    return RECORDED_COPIES * waiting * bytes_per_step(spec)


def _learning_bytes(network: nn.Module, batch: int, drawn: int, device: torch.device) -> int:
    """Of one network: its weights, their optimizer, and the activations of `batch` samples."""
    parameters = list(network.parameters())
    units = sum(weight.shape[:-1].numel() for weight in parameters if weight.dim() > 1)
    sample = ACTIVATION_COPIES * (BYTES * units + drawn)
    return _parameter_copies(device) * BYTES * sum(weight.numel() for weight in parameters) + batch * sample


def _critic_of(cfg: ExperimentConfig, spec: EnvSpec) -> nn.Module | None:
    """A critic, without memory for its weights; None where it is like the policy."""
    network = make_network(cfg.network, spec)
    if not isinstance(network, BatchNormNetwork):
        return None
    with torch.device("meta"):
        return network.critics(1, 1)


def _parameter_copies(device: torch.device) -> int:
    """How many numbers as large as a weight there are of each on `device`."""
    return PARAMETER_COPIES + (SAVED_COPIES if device.type == "cpu" else 0)


def _one_world(cfg: ExperimentConfig) -> VecEnv:
    alone = cfg.env.model_copy(update={"num_envs": 1, "backend": "mujoco"})
    plan = ComputePlan(torch.device("cpu"), "mujoco", 1, 1, compiled=False, autocast="none", reasons=())
    return make_training_env(cfg.model_copy(update={"env": alone}), plan)


def free_bytes(device: torch.device) -> int:
    """Memory that `device` can still give to this process; ranks on a machine share its memory equally."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // launch_of_environment().local_world_size


def check_memory(cfg: ExperimentConfig, device: torch.device) -> MemoryEstimate | None:
    """The estimate of a run that fits; None for envs written elsewhere, whose physics nobody can look into.

    Raises:
        SettingError: it exceeds the memory that is free; the message says how much would fit.
    """
    if is_zoo_name(cfg.env.name):
        return None
    _check_layers(cfg, device)
    try:
        needed, free = estimate(cfg, device), free_bytes(device)
    except Exception as error:
        if is_out_of_memory(error):  # one world, or the weights, are too much
            raise out_of_memory(cfg, device) from None
        raise
    if needed.total <= free:
        return needed
    problem = f"needs about {_gb(needed.total)} GB, {_gb(free)} GB are free on {device.type}"
    field = cfg.algorithm.storage_field
    raise SettingError(field, _value(cfg, field), problem, _what_fits(cfg, needed, free))


def _check_layers(cfg: ExperimentConfig, device: torch.device) -> None:
    """Refuse layers between which the weights alone do not fit; `estimate` would allocate them to count them.

    Raises:
        SettingError: they do not.
    """
    for field, widths in cfg.network.layers().items():
        sizes = list(widths)
        num_weights = sum(width * next_width for width, next_width in pairwise(sizes))
        needed = _parameter_copies(device) * BYTES * num_weights
        free = free_bytes(device)
        if needed > free:
            problem = f"their weights need about {_gb(needed)} GB, {_gb(free)} GB are free on {device.type}"
            raise SettingError(field, sizes, problem, "set smaller sizes")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; torch on a CPU, Warp and XLA raise a RuntimeError with words of their own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in OUT_OF_MEMORY)


def out_of_memory(cfg: ExperimentConfig, device: torch.device) -> SettingError:
    """The error of a run whose estimate fitted, and that ran out of memory all the same."""
    field = cfg.algorithm.storage_field
    problem = f"{device.type} ran out of memory ({_gb(free_bytes(device))} GB are free)"
    others = [name for name in _OTHER_FIELDS if name != field and name.split(".")[1] in _keys(cfg, name)]
    return SettingError(field, _value(cfg, field), problem, f"lower it, or {' or '.join(others)}")


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


def _what_fits(cfg: ExperimentConfig, needed: MemoryEstimate, free: int) -> str:
    """The fix: at most so many worlds, a power of two, or so many stored steps; or what else to lower."""
    if cfg.algorithm.storage_field == "env.num_envs":
        each = (needed.storage + needed.worlds) / cfg.env.num_envs
        most = int((free - min(needed.learning + needed.recording, free // 2)) / each)
        if most < 1:
            return "set a smaller network, or shorten what is stored"
        return f"set at most {2 ** (most.bit_length() - 1)}, or shorten what is stored"
    each = needed.storage / int(_value(cfg, cfg.algorithm.storage_field))
    most = int((free - needed.worlds - needed.learning - needed.recording) / each)
    return f"set it to at most {most}" if most > 0 else "set fewer worlds or a smaller network"


def _keys(cfg: ExperimentConfig, field: str) -> Collection[str]:
    """The keys of the section that `field` is of."""
    return type(getattr(cfg, field.split(".")[0])).fields_by_key()


def _value(cfg: ExperimentConfig, field: str) -> Any:
    section, key = field.split(".")
    return getattr(getattr(cfg, section), key)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g}"
