"""SBX: PPO of Stable-Baselines3's authors with its update in JAX, on the same envs.

Source: Raffin, "Stable Baselines Jax & Fast RL", package `sbx-rl`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench._loops import Loop
from bench._loops import sb3 as stable_baselines
from bench._loops._peer import Peer, Settings, ppo_with_mlp

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig


def same_settings(cfg: ExperimentConfig) -> Settings:
    """Those for Stable-Baselines3, with the activation by JAX's name, which is ours."""
    settings = stable_baselines.same_settings(cfg)
    return settings | {"network": settings["network"] | {"activation": ppo_with_mlp(cfg)[1].activation}}


PEER = Peer(
    modules=("sbx", "stable_baselines3"),
    describe=lambda facts: f"{stable_baselines.describe(facts)}, the update in JAX {facts['jax']}",
    default=stable_baselines.default_settings,
    sized=stable_baselines.sized_settings,
    sizes=(8, 64, 256),
    same=same_settings,
    tells_returns=True,
)


class SbxLoop(stable_baselines.StableBaselinesLoop):
    """Stable-Baselines3's loop with the other PPO."""

    def __init__(self, settings: Settings) -> None:
        import jax
        import sbx

        super().__init__(settings, sbx, jax.nn)
        policy: Any = self.model.policy
        weights = jax.tree.leaves((policy.actor_state.params, policy.vf_state.params))
        self.facts |= {"jax": jax.__version__, "num_parameters": sum(weight.size for weight in weights)}

    def warm_up(self) -> None:
        for _ in range(2):  # the weights that come back from the first update may compile it once more
            self.iterate()


def make(settings: Settings) -> Loop:
    """The loop that one of the settings functions describes."""
    return SbxLoop(settings)
