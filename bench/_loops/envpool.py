"""EnvPool's C++ threads step Gymnasium's tasks; a lean PPO in torch learns.

Source: Weng et al. 2022, "EnvPool: A Highly Parallel Reinforcement Learning Environment Execution Engine".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench._loops import Loop
from bench._loops._peer import GYMNASIUM_IDS, Peer, Settings, horizon_for, same_numbers

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig

MINIBATCHES = 8  # of a rollout where the batch is sized
TORCH_THREADS = 1  # minibatches are too small to split, and the pool has the cores


def default_settings(cfg: ExperimentConfig) -> Settings:
    """Eight envs and the numbers of `LeanSettings`: a pool has no trainer, and so no defaults, of its own."""
    return {
        "gymnasium_id": GYMNASIUM_IDS[cfg.env.name],
        "num_envs": 8,
        "seed": cfg.experiment.seed,
        "ppo": {},
    }


def sized_settings(cfg: ExperimentConfig, num_envs: int) -> Settings:
    """The same with `num_envs` envs, and a rollout and minibatches to suit them."""
    horizon = horizon_for(num_envs)
    ppo = {"horizon": horizon, "minibatch_size": num_envs * horizon // MINIBATCHES}
    return default_settings(cfg) | {"num_envs": num_envs, "ppo": ppo}


def same_settings(cfg: ExperimentConfig) -> Settings:
    """The hyperparameters of `cfg`."""
    ppo = same_numbers(cfg)
    del ppo["normalize_observations"]
    return default_settings(cfg) | {"num_envs": cfg.env.num_envs, "ppo": ppo}


def describe(facts: dict[str, Any]) -> str:
    """What the loop with these `facts` is, in a line."""
    envs = f"{facts['num_envs']} envs x {facts['horizon']} steps on {facts['pool_threads']} threads"
    learning = f"{facts['num_epochs']} epochs, minibatches of {facts['minibatch_size']}"
    threads = f"{facts['torch_threads']} torch thread"
    return f"EnvPool {facts['version']} and a lean PPO: {envs}, {learning}, {threads}"


PEER = Peer(
    modules=("envpool",),
    describe=describe,
    default=default_settings,
    sized=sized_settings,
    sizes=(8, 64, 256),
    same=same_settings,
)


class EnvPoolLoop(Loop):
    """One iteration is one rollout and the update on it."""

    def __init__(self, settings: Settings) -> None:
        import envpool
        import torch

        from bench._lean_ppo import LeanPPO, LeanSettings

        torch.set_num_threads(TORCH_THREADS)
        torch.manual_seed(settings["seed"])
        self.env = envpool.make(
            settings["gymnasium_id"],
            env_type="gymnasium",
            num_envs=settings["num_envs"],
            seed=settings["seed"],
        )
        numbers = LeanSettings(**settings["ppo"])
        self.learner = LeanPPO(self.env, settings["num_envs"], numbers)
        self.env_steps = settings["num_envs"] * numbers.horizon
        self.facts = {
            "version": envpool.__version__,
            "pool_threads": self.env.spec.config.num_threads or "all",
            "torch_threads": torch.get_num_threads(),
            "num_envs": settings["num_envs"],
            "horizon": numbers.horizon,
            "num_epochs": numbers.num_epochs,
            "minibatch_size": numbers.minibatch_size,
            "num_parameters": sum(weight.numel() for weight in self.learner.parameters),
        }

    def iterate(self) -> int:
        self.learner.collect()
        self.learner.update()
        return self.env_steps


def make(settings: Settings) -> Loop:
    """The loop that one of the settings functions describes."""
    return EnvPoolLoop(settings)
