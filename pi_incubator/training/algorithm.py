"""The algorithm contract: what the loop, the commands and the hooks may ask of anything that learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithm import AlgorithmSettings
from pi_incubator.data.datasets.recorder import Recorder, recorded
from pi_incubator.distributed import Distributed
from pi_incubator.envs import make_training_env
from pi_incubator.errors import DivergedError
from pi_incubator.policies.policy import Policy
from pi_incubator.run_folder import RunFolder
from pi_incubator.training.skipped import SkippedUpdates

Settings = TypeVar("Settings", bound=AlgorithmSettings)


class Counters:
    """How far the training is, as a part of a checkpoint."""

    def __init__(self) -> None:
        self.iteration = 0
        """Iterations that are complete."""
        self.env_steps = 0
        """Environment steps so far, over all worlds of all ranks."""

    def state_dict(self) -> dict[str, Tensor]:
        return {"iteration": torch.tensor(self.iteration), "env_steps": torch.tensor(self.env_steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.iteration = int(state["iteration"])
        self.env_steps = int(state["env_steps"])


class Algorithm(ABC, Generic[Settings]):
    """Something that collects data and learns from it, iteration by iteration.

    A concrete algorithm builds `policy`, critics, buffers and optimizers in its constructor.

    Args:
        cfg: the experiment; its section `algorithm` holds this algorithm's settings.
        env: the training worlds of this rank, made by `make_env`.
        distributed: this rank among those that train together.
        compute: device and compilation.
    """

    policy: Policy

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        self.cfg, self.env, self.distributed, self.compute = cfg, env, distributed, compute
        self.settings = cast(Settings, cfg.algorithm)
        self.num_iterations = _num_iterations(cfg, distributed)
        self.counters = Counters()
        self.shards = _shards_of(cfg, distributed)
        self.skipped = SkippedUpdates(env.device)

    @classmethod
    def make_env(
        cls, cfg: ExperimentConfig, compute: ComputePlan, folder: RunFolder | None, distributed: Distributed
    ) -> VecEnv:
        """The training worlds of one rank; with a `folder` they dump broken worlds there, and are recorded.

        Raises:
            SettingError: as `make_training_env`, or nothing can be recorded where the settings say.
        """
        env = make_training_env(cfg, compute, folder, first_world=distributed.rank * cfg.env.num_envs)
        if folder is None or cfg.training.record is None:
            return env
        writer = f"{cfg.experiment.name}-{distributed.rank}"
        continues = cfg.checkpoint.resume != "never" and bool(folder.saved())
        return recorded(env, Recorder(Path(cfg.training.record), writer, env.spec, continues))

    @staticmethod
    @abstractmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> Policy:
        """The untrained policy of `cfg` for an env, on the env's device: what evaluation and export load."""

    @abstractmethod
    def collect(self) -> None:
        """Step the worlds, or read the next batches of recorded data."""

    @abstractmethod
    def update(self) -> dict[str, Tensor]:
        """Learn; returns 0-dim metrics that stay on the device."""

    def parts(self) -> dict[str, Part]:
        """Name -> everything that a bit-exact continuation needs; the names become file names."""
        return {
            "env": Part(self.env, per_rank=True),
            "policy": Part(self.policy, is_learned=True),
            "counters": Part(self.counters),
            "skipped": Part(self.skipped),
        }

    def autocast(self) -> torch.autocast:
        """The context in which losses are computed: matrices are multiplied as `compute.autocast` says."""
        enabled = self.compute.autocast == "bfloat16"
        return torch.autocast(self.env.device.type, torch.bfloat16, enabled=enabled)

    def settle(self) -> None:
        """Wait for an update that goes on in the background; the policy can then be saved and judged."""

    def pop_metrics(self) -> dict[str, float]:
        """What happened in the worlds since the last call: one host sync."""
        return self.env.pop_metrics()

    def check(self) -> None:
        """Stop a training that has gone wrong: one host sync.

        Raises:
            BrokenWorldsError: too many worlds broke since the last check.
            DivergedError: a weight of the policy is not finite, or too many updates were skipped.
        """
        self.env.check()
        self.skipped.check(self.cfg.guards.max_skipped_updates)
        for network in self.networks_at_rest():
            check_finite(network)

    def networks_at_rest(self) -> Sequence[torch.nn.Module]:
        """The networks that act or are saved, and that no update in the background is changing."""
        return (self.policy,)

    def conclude(self, folder: RunFolder) -> Iterable[Path]:
        """Do what is left after the last iteration; yields the files that it wrote into `folder`."""
        return ()

    def close(self) -> None:
        """Release the worlds."""
        self.env.close()

    @property
    def env_steps(self) -> int:
        """Environment steps so far, over all worlds of all ranks."""
        return self.counters.env_steps

    @property
    def iteration(self) -> int:
        """Iterations that are complete."""
        return self.counters.iteration

    def _finish_iteration(self) -> None:
        """Count one iteration of the usual number of environment steps."""
        self.counters.iteration += 1
        self.counters.env_steps += self.cfg.steps_per_iteration * self.distributed.world_size


def _num_iterations(cfg: ExperimentConfig, distributed: Distributed) -> int:
    """Whole iterations of all ranks that fit in `training.total_steps`.

    Raises:
        SettingError: there are none.
    """
    num_iterations, world_size = cfg.num_iterations(distributed.world_size), distributed.world_size
    if not num_iterations:
        steps = cfg.steps_per_iteration * world_size
        problem = f"must be at least one iteration of {world_size} processes, {steps} steps"
        total_steps = cfg.training.total_steps
        raise SettingError("training.total_steps", total_steps, problem, f"set it to {steps} or more")
    return num_iterations


def _shards_of(cfg: ExperimentConfig, distributed: Distributed) -> range:
    """The shards of worlds that this rank holds.

    Raises:
        SettingError: the shards cannot be divided among the ranks, or the worlds among the shards.
    """
    world_size, num_shards = distributed.world_size, cfg.compute.shards or distributed.world_size
    if num_shards % world_size:
        problem = f"cannot be divided among {world_size} processes"
        raise SettingError(
            "compute.shards", num_shards, problem, f"set it to a multiple of {world_size}, or 0"
        )
    each = num_shards // world_size
    for field, number in (("env.num_envs", cfg.env.num_envs), cfg.algorithm.divided_among_shards(cfg)):
        if number % each:
            section, key = field.split(".")
            value = getattr(getattr(cfg, section), key)
            which = "" if value == number else f"makes {number} windows, which "
            problem = f"{which}cannot be divided among the {each} shards of a process"
            raise SettingError(field, value, problem, "change it, or compute.shards")
    return range(distributed.rank * each, (distributed.rank + 1) * each)


def check_finite(module: torch.nn.Module) -> None:
    """Refuse weights with which no further step is possible.

    Raises:
        DivergedError: a weight is not finite.
    """
    if not torch.stack([weight.isfinite().all() for weight in module.parameters()]).all():
        raise DivergedError(
            "the last update left weights that are not finite, and no checkpoint was written of them; set "
            "another experiment.name and a lower learning rate, and start with the weights of the last "
            "checkpoint by checkpoint.from=FOLDER, the folder of this run"
        )
