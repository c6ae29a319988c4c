"""Settings of selective state spaces."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.network import NumLayers, StatefulSettings


class MambaSettings(StatefulSettings):
    """Layers of selective state spaces, and fully connected layers behind them."""

    embeds: ClassVar[bool] = True

    name: Literal["mamba"] = "mamba"
    """Network: the name of a file in pi_incubator/networks."""
    num_layers: NumLayers = 1
    """Layers of selective state spaces; their residual stream is as wide as the first of hidden_sizes."""
    expansion: Annotated[int, Field(ge=1, le=64)] = 1
    """Channels of a layer, as a multiple of the residual stream's width."""
    num_states: Annotated[int, Field(ge=1, le=256)] = 8
    """States of each channel."""
    num_taps: Annotated[int, Field(ge=2, le=64)] = 4
    """Steps that the convolution of a layer sees, the current one and those before it."""
