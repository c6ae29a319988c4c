"""Settings of gated transformers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pi_incubator.config.network import NumLayers, StatefulSettings
from pi_incubator.config.section import cross_field_error


class TransformerSettings(StatefulSettings):
    """Causal transformer layers with gates, and fully connected layers behind them."""

    embeds: ClassVar[bool] = True

    name: Literal["transformer"] = "transformer"
    """Network: the name of a file in pi_incubator/networks."""
    num_layers: NumLayers = 1
    """Transformer layers; their stream is as wide as the first of hidden_sizes."""
    num_heads: Annotated[int, Field(ge=1, le=256)] = 2
    """Heads of the attention; divides the first of hidden_sizes."""
    window: Annotated[int, Field(ge=2, le=2**14)] = 64
    """Steps that a layer attends to, the current one and those before it."""
    expansion: Annotated[int, Field(ge=1, le=64)] = 2
    """Width of a layer's fully connected layer, as a multiple of the stream's."""

    @model_validator(mode="after")
    def _heads_fit(self) -> TransformerSettings:
        if self.hidden_sizes[0] % self.num_heads:
            raise cross_field_error(
                field="network.num_heads",
                value=self.num_heads,
                problem=f"does not divide the first of network.hidden_sizes = {self.hidden_sizes[0]}",
                fix="set one of them so that it does",
            )
        return self
