"""SBX's SAC: Stable-Baselines3's loop with the updates in JAX, all of an iteration in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench._loops import ScoredLoop
from bench._loops._off_policy import describe
from bench._loops._peer import Settings
from bench._loops.sb3_sac import PEER as SB3_PEER
from bench._loops.sb3_sac import StableBaselinesOffPolicy

PEER = replace(
    SB3_PEER,
    modules=("sbx", "stable_baselines3"),
    describe=lambda facts: f"{describe(facts)}, the updates in JAX {facts['jax']}",
)


def make(settings: Settings) -> ScoredLoop:
    """The loop that `default_settings` or `same_settings` describes."""
    import jax
    import sbx

    loop = StableBaselinesOffPolicy(settings, sbx.SAC, sbx.__version__)
    policy: Any = loop.model.policy
    weights = jax.tree.leaves((policy.actor_state.params, policy.qf_state.params))
    loop.facts |= {"jax": jax.__version__, "num_parameters": sum(weight.size for weight in weights)}
    return loop
