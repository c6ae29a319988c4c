"""What the settings of every network share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pi_incubator.config.section import MAX_LAYERS, Positive, Section, Sizes, cross_field_error

LOG_STD_RANGE = (-5.0, 2.0)
"""Natural logarithms between which `state_dependent_std` keeps the standard deviation."""


class NetworkSettings(Section):
    """Settings of a network; a subclass in `config/networks/` adds its own."""

    has_state: ClassVar[bool] = False
    """Whether the network carries a state from step to step, and so learns from whole sequences."""
    embeds: ClassVar[bool] = False
    """Whether a layer with an activation comes before those with a state."""
    sees_pixels: ClassVar[bool] = False
    """Whether it reads `env.pixels`, and nothing else; see `reads_pixels` for one whose settings say so."""
    needs_batch_statistics: ClassVar[bool] = False
    """Whether it has batch normalizations, whose moments only some algorithms maintain."""
    is_world_model: ClassVar[bool] = False
    """Whether it predicts what the worlds do, which only some algorithms train."""

    name: str
    """Network: the name of a file in pi_incubator/networks."""
    init_log_std: Annotated[float, Field(ge=-20, le=5)] = 0.0
    """Initial natural logarithm of the action's standard deviation."""
    state_dependent_std: bool = False
    """Whether the standard deviation is an output of the network (e^-5 to e^2), or one number an action."""
    normalize_observations: bool = True
    """Whether observations are shifted and scaled by their running mean and standard deviation."""
    observation_clip: Positive = 10.0
    """Bound on normalized observations, in standard deviations."""

    @property
    def reads_pixels(self) -> bool:
        """Whether the policy or a critic reads `env.pixels`."""
        return self.sees_pixels

    @property
    def acts_on_pixels(self) -> bool:
        """Whether the policy reads `env.pixels`."""
        return self.sees_pixels

    @property
    def reads_vectors(self) -> bool:
        """Whether the policy or a critic reads a group that is a vector."""
        return not self.sees_pixels

    def pixels_error(self, drawn: bool) -> Exception | None:
        """What to say where `env.pixels` and these settings disagree; None where another name is the remedy.

        Args:
            drawn: whether there are pixels.
        """
        return None

    def layers(self) -> dict[str, tuple[int, ...]]:
        """The widths of fully connected layers, by the field that says them."""
        sizes = {f"network.{key}": getattr(self, key, ()) for key in ("hidden_sizes", "critic_sizes")}
        return {field: widths for field, widths in sizes.items() if widths}

    @model_validator(mode="after")
    def _std_fits(self) -> Self:
        low, high = LOG_STD_RANGE
        if self.state_dependent_std and not low <= self.init_log_std <= high:
            raise cross_field_error(
                field="network.init_log_std",
                value=self.init_log_std,
                problem=f"with network.state_dependent_std it is limited to {low:g} to {high:g}",
                fix="set it within them",
            )
        return self


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
