"""SAC as CleanRL's `sac_continuous_action` has it, written by us: CleanRL is scripts, not a package.

Source: Huang et al. 2022, "CleanRL: High-quality Single-file Implementations of Deep Reinforcement Learning
Algorithms".
"""

from __future__ import annotations

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
    modules=("gymnasium",),
    describe=describe,
    default=default_settings,
    same=same_settings,
    tells_returns=True,
)


class CleanRLLoop(ScoredLoop):
    """One iteration is some rounds of collection and updates."""

    def __init__(self, settings: Settings) -> None:
        import gymnasium
        import torch

        from bench._lean_sac import LeanSAC, LeanSettings

        torch.manual_seed(settings["seed"])
        num_envs = settings["num_envs"]
        env = gymnasium.make_vec(
            settings["gymnasium_id"],
            num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
        )
        numbers = LeanSettings(**settings["numbers"])
        self.learner = LeanSAC(env, num_envs, numbers, settings["seed"])
        round_steps = num_envs * numbers.horizon
        self.rounds = -(-MIN_ITERATION_STEPS // round_steps)
        self.env_steps = self.rounds * round_steps
        networks = (self.learner.actor, self.learner.critics)
        self.facts = {
            "name": "CleanRL's SAC in lean torch on Gymnasium",
            "version": gymnasium.__version__,
            "vec_env": type(env).__name__,
            "torch_threads": torch.get_num_threads(),
            "num_envs": num_envs,
            "steps_between_updates": round_steps,
            "num_updates": numbers.num_updates,
            "batch_size": numbers.batch_size,
            "hidden_sizes": list(numbers.hidden_sizes),
            "num_parameters": sum(weight.numel() for one in networks for weight in one.parameters()),
        }

    def iterate(self) -> int:
        for _ in range(self.rounds):
            self.learner.collect()
            self.learner.update()
        return self.env_steps

    def warm_up(self) -> None:
        while self.num_updates == 0:
            self.iterate()

    @property
    def num_updates(self) -> int:
        return self.learner.num_updates

    def recent_return(self) -> float | None:
        returns = self.learner.returns
        return sum(returns) / len(returns) if len(returns) == RECENT_EPISODES else None


def make(settings: Settings) -> ScoredLoop:
    """The loop that `default_settings` or `same_settings` describes."""
    return CleanRLLoop(settings)
