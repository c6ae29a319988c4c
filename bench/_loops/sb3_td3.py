"""Stable-Baselines3's TD3, as its SAC."""

from __future__ import annotations

from bench._loops import ScoredLoop
from bench._loops._peer import Settings
from bench._loops.sb3_sac import PEER as PEER
from bench._loops.sb3_sac import make_stable_baselines


def make(settings: Settings) -> ScoredLoop:
    """The loop that `default_settings` or `same_settings` describes."""
    return make_stable_baselines("TD3", settings)
