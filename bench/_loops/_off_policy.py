"""What the off-policy peers share: with which configs they can be compared, and the numbers of a config.

The file imports nothing heavy at its top, as `_peer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from bench._loops._peer import GYMNASIUM_IDS, Peer, Settings

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig
    from pi_incubator.config.algorithm import ReplaySettings

MIN_ITERATION_STEPS = 100
"""Environment steps of a peer's iteration, at least: starting one is not what is measured."""


@dataclass(frozen=True)
class OffPolicyPeer(Peer):
    """A loop that learns from a replay buffer, of another project."""

    def misfit(self, cfg: ExperimentConfig) -> tuple[str, str] | None:
        if not is_off_policy(cfg):
            return f"algorithm.name = {cfg.algorithm.name!r}: it learns off-policy", "name sac, for one"
        updates = updates_of_iteration(cfg)
        if updates < 1 or updates != int(updates):
            problem = f"makes {updates:g} updates an iteration, and peers take whole ones"
            return f"algorithm.updates_per_step {problem}", "change it, env.num_envs or algorithm.horizon"
        return None


def is_off_policy(cfg: ExperimentConfig) -> bool:
    """Whether an algorithm learns from a replay buffer while it collects."""
    from pi_incubator.config.algorithm import ReplaySettings

    algorithm = cfg.algorithm
    of_its_kind = not algorithm.reads_dataset and not algorithm.trains_world_model
    return isinstance(algorithm, ReplaySettings) and of_its_kind


def updates_of_iteration(cfg: ExperimentConfig) -> float:
    """Optimizer steps for the environment steps of an iteration of `cfg`."""
    return cfg.steps_per_iteration * _replay_settings(cfg).updates_per_step


def same_numbers(cfg: ExperimentConfig) -> Settings:
    """What every off-policy learner has, by our names, and the network where it is an MLP."""
    from pi_incubator.config.networks.mlp import MLPSettings

    ours = _replay_settings(cfg)
    numbers: dict[str, Any] = {
        "horizon": ours.horizon,
        "num_updates": int(updates_of_iteration(cfg)),
        "batch_size": ours.batch_size,
        "buffer_size": ours.buffer_size,
        "learning_starts": ours.learning_starts,
        "gamma": ours.gamma,
        "tau": getattr(ours, "tau", None),
    }
    if isinstance(cfg.network, MLPSettings):
        numbers["hidden_sizes"] = list(cfg.network.hidden_sizes)
    return {name: value for name, value in numbers.items() if value is not None}


def default_settings(cfg: ExperimentConfig) -> Settings:
    """What `make` reads for a peer as it comes: one env, every hyperparameter left alone."""
    return {
        "gymnasium_id": GYMNASIUM_IDS[cfg.env.name],
        "num_envs": 1,
        "seed": cfg.experiment.seed,
        "numbers": {},
    }


def same_settings(cfg: ExperimentConfig) -> Settings:
    """What `make` reads for worlds, updates, batch and widths of `cfg`; learning rates stay the peer's."""
    return default_settings(cfg) | {"num_envs": cfg.env.num_envs, "numbers": same_numbers(cfg)}


def describe(facts: dict[str, Any]) -> str:
    """The loop with these `facts`, in a line."""
    steps = f"{facts['num_updates']} updates after every {facts['steps_between_updates']} env steps"
    learning = f"{steps}, batches of {facts['batch_size']}, layers of {facts['hidden_sizes']}"
    envs = f"{facts['num_envs']} env in {facts['vec_env']}"
    return f"{facts['name']} {facts['version']}: {envs}, {learning}, {facts['torch_threads']} torch threads"


def named_only(module: str, install: str) -> OffPolicyPeer:
    """A project that has off-policy code, and that this bench cannot run yet."""
    return OffPolicyPeer((module,), describe, default=None, install=install, is_named_only=True)


def _replay_settings(cfg: ExperimentConfig) -> ReplaySettings:
    return cast("ReplaySettings", cfg.algorithm)
