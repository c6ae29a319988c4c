"""What the settings of every network share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.section import MAX_LAYERS, Positive, Section, Sizes


class NetworkSettings(Section):
    """Settings of a network; a subclass in `config/networks/` adds its own."""

    has_state: ClassVar[bool] = False
    """Whether the network carries a state from step to step, and so learns from whole sequences."""
    embeds: ClassVar[bool] = False
    """Whether a layer with an activation comes before those with a state."""
    sees_pixels: ClassVar[bool] = False
    """Whether it reads `env.pixels`, and nothing else."""
    needs_batch_statistics: ClassVar[bool] = False
    """Whether it has batch normalizations, whose moments only some algorithms maintain."""
    is_world_model: ClassVar[bool] = False
    """Whether it predicts what the worlds do, which only some algorithms train."""

    name: str
    """Network: the name of a file in pi_incubator/networks."""
    init_log_std: Annotated[float, Field(ge=-20, le=5)] = 0.0
    """Initial natural logarithm of the action's standard deviation."""
    normalize_observations: bool = True
    """Whether observations are shifted and scaled by their running mean and standard deviation."""
    observation_clip: Positive = 10.0
    """Bound on normalized observations, in standard deviations."""


Activation = Literal["tanh", "elu", "relu", "silu"]


class HiddenSettings(NetworkSettings):
    """What networks share that have hidden layers of given widths, with one activation."""

    hidden_sizes: Sizes = (64, 64)
    """Width of each hidden layer, in units."""
    activation: Activation = "tanh"
    """Activation after each hidden layer."""


class StatefulSettings(HiddenSettings):
    """What networks share that carry a state from step to step."""

    has_state: ClassVar[bool] = True

    hidden_sizes: Sizes = (64, 64)
    """Width of the layers with a state, then of each hidden layer behind them, in units."""


NumLayers = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
DependencySteps = Annotated[int, Field(ge=2, le=2**20)]
