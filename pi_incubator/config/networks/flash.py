"""Settings of FlashSAC's networks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.network import NetworkSettings
from pi_incubator.config.section import Count


class FlashSettings(NetworkSettings):
    """Residual blocks with batch normalization and weights of unit norm."""

    needs_batch_statistics: ClassVar[bool] = True

    name: Literal["flash"] = "flash"
    """Network: the name of a file in pi_incubator/networks."""
    actor_width: Count = 64
    """Width of the policy's residual stream, in units."""
    critic_width: Count = 128
    """Width of each critic's residual stream, in units."""
    num_blocks: Count = 2
    """Residual blocks of the policy, and of each critic."""
    expansion: Count = 4
    """Width inside a block, as a multiple of the residual stream's."""
    normalize_observations: bool = False
    """Whether observations are normalized before the first layer, which normalizes them by itself."""
