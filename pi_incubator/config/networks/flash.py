"""Settings of FlashSAC's networks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.network import NetworkSettings
from pi_incubator.config.section import MAX_LAYERS

Width = Annotated[int, Field(ge=1, le=2**14)]


class FlashSettings(NetworkSettings):
    """Residual blocks with batch normalization and weights of unit norm."""

    needs_batch_statistics: ClassVar[bool] = True

    name: Literal["flash"] = "flash"
    """Network: the name of a file in pi_incubator/networks."""
    actor_width: Width = 64
    """Width of the policy's residual stream, in units."""
    critic_width: Width = 128
    """Width of each critic's residual stream, in units."""
    num_blocks: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 2
    """Residual blocks of the policy, and of each critic."""
    expansion: Annotated[int, Field(ge=1, le=64)] = 4
    """Width inside a block, as a multiple of the residual stream's."""
    normalize_observations: bool = False
    """Whether observations are normalized before the first layer, which normalizes them by itself."""
