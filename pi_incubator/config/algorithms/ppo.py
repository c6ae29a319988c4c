"""Settings of proximal policy optimization."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.policy_gradient import ClippedSettings
from pi_incubator.config.section import Fraction, NonNegative


class PPOSettings(ClippedSettings):
    """Clipped PPO: what is collected for an iteration, and how it is learned from."""

    name: Literal["ppo"] = "ppo"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    loss: Literal["torchrl", "fused"] = "torchrl"
    """torchrl: ClipPPOLoss; fused: the same losses by our kernel, one launch forward and one backward."""
    gae_lambda: Fraction = 0.95
    """Decay of generalized advantage estimation: 0 is one-step TD, 1 is Monte Carlo."""
    value_coef: NonNegative = 0.5
    """Weight of the value loss."""
    clip_value_loss: bool = False
    """Whether the value may move clip_ratio from the old one before the value loss stops rewarding it."""
    normalize_value: bool = False
    """Whether the critic learns returns in units of their running standard deviation, from their mean."""
    normalize_advantage: bool = True
    """Whether advantages are shifted and scaled to zero mean and unit standard deviation."""
