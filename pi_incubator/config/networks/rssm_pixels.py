"""Settings of the recurrent state-space model of pixels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.rssm import RSSMSettings
from pi_incubator.config.section import Sizes


class RSSMPixelsSettings(RSSMSettings):
    """A world model of pictures, with a recurrent and a categorical state."""

    sees_pixels: ClassVar[bool] = True

    name: Literal["rssm_pixels"] = "rssm_pixels"
    """Network: the name of a file in pi_incubator/networks."""
    channels: Sizes = (16, 32, 64, 64)
    """Channels of each convolution, which halves height and width."""
