"""Stable-Baselines3's SAC on Gymnasium's tasks, through its own `learn`; the base of its siblings.

As `sb3.py`, its process imports nothing of ours but this package.
"""

from __future__ import annotations

from typing import Any

from bench._loops import RECENT_EPISODES, ScoredLoop
from bench._loops._off_policy import (
    MIN_ITERATION_STEPS,
    OffPolicyPeer,
    default_settings,
    describe,
    same_settings,
)
from bench._loops._peer import Settings

PEER = OffPolicyPeer(
    modules=("stable_baselines3",),
    describe=describe,
    default=default_settings,
    same=same_settings,
    tells_returns=True,
)


class StableBaselinesOffPolicy(ScoredLoop):
    """One iteration is a `learn` call for some rounds of collection and updates.

    Args:
        settings: what `default_settings` and `same_settings` give.
        kind: the class of the algorithm, of `stable_baselines3` or of `sbx`, which has the same arguments.
        version: of its package.
    """

    def __init__(self, settings: Settings, kind: Any, version: str) -> None:
        import torch
        from stable_baselines3.common import env_util

        env = env_util.make_vec_env(
            settings["gymnasium_id"], n_envs=settings["num_envs"], seed=settings["seed"]
        )
        options = dict(settings["numbers"])
        names = {"horizon": "train_freq", "num_updates": "gradient_steps"}
        options = {names.get(name, name): value for name, value in options.items()}
        widths = options.pop("hidden_sizes", None)
        network = None if widths is None else {"net_arch": widths}
        common = {"device": "cpu", "seed": settings["seed"], "policy_kwargs": network}
        self.model = kind("MlpPolicy", env, **common, **options)
        round_steps = self.model.train_freq.frequency * env.num_envs
        self.env_steps = round_steps * -(-MIN_ITERATION_STEPS // round_steps)
        self.facts = {
            "name": kind.__name__,
            "version": version,
            "vec_env": type(env).__name__,
            "torch_threads": torch.get_num_threads(),
            "num_envs": env.num_envs,
            "steps_between_updates": round_steps,
            "num_updates": self.model.gradient_steps,
            "batch_size": self.model.batch_size,
            "hidden_sizes": widths or "the default",
        }

    def iterate(self) -> int:
        self.model.learn(self.env_steps, reset_num_timesteps=False)
        return self.env_steps

    def warm_up(self) -> None:
        while self.num_updates == 0:
            self.iterate()
        self.iterate()  # what comes back from the first updates may compile them once more

    @property
    def num_updates(self) -> int:
        return int(self.model._n_updates)

    def recent_return(self) -> float | None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]  # the last 100
        return sum(returns) / len(returns) if len(returns) >= RECENT_EPISODES else None


def make_stable_baselines(name: str, settings: Settings) -> ScoredLoop:
    """The loop of Stable-Baselines3's algorithm of this name."""
    import stable_baselines3

    loop = StableBaselinesOffPolicy(settings, getattr(stable_baselines3, name), stable_baselines3.__version__)
    networks = (loop.model.actor, loop.model.critic)
    loop.facts["num_parameters"] = sum(weight.numel() for one in networks for weight in one.parameters())
    return loop


def make(settings: Settings) -> ScoredLoop:
    """The loop that `default_settings` or `same_settings` describes."""
    return make_stable_baselines("SAC", settings)
