"""What the settings of the recurrent state-space models share."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pi_incubator.config.network import NetworkSettings
from pi_incubator.config.section import Sizes


class RSSMSettings(NetworkSettings):
    """Sizes of a world model with a recurrent and a categorical state."""

    has_state: ClassVar[bool] = True
    is_world_model: ClassVar[bool] = True

    recurrent_size: Annotated[int, Field(ge=1, le=2**16)] = 256
    """Width of the recurrent state, in units."""
    num_latents: Annotated[int, Field(ge=1, le=2**10)] = 16
    """Categorical variables of the other half of the state."""
    num_classes: Annotated[int, Field(ge=2, le=2**10)] = 8
    """Classes of each categorical variable."""
    hidden_sizes: Sizes = (128, 128)
    """Width of each hidden layer of encoder, decoder, policy and critic; the last also of the model's own."""
    normalize_observations: bool = False
    """Whether observations are normalized before their size is compressed, which often suffices."""
