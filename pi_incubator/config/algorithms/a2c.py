"""Settings of the advantage actor-critic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pi_incubator.config.policy_gradient import PolicyGradientSettings
from pi_incubator.config.section import Fraction, NonNegative


class A2CSettings(PolicyGradientSettings):
    """Advantage actor-critic: every step is learned from once, by default in one optimizer step."""

    name: Literal["a2c"] = "a2c"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    horizon: Annotated[int, Field(ge=1, le=2**16)] = 8
    """Steps of each world collected for one iteration."""
    gae_lambda: Fraction = 1.0
    """Decay of generalized advantage estimation: 0 is one-step TD, 1 is the longest return of the rollout."""
    value_coef: NonNegative = 0.5
    """Weight of the value loss."""
    normalize_advantage: bool = False
    """Whether advantages are shifted and scaled to zero mean and unit standard deviation."""
