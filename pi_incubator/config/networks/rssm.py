"""Settings of the recurrent state-space model of vectors."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.rssm import RSSMSettings


class RSSMVectorSettings(RSSMSettings):
    """A world model of vectors, with a recurrent and a categorical state."""

    name: Literal["rssm"] = "rssm"
    """Network: the name of a file in pi_incubator/networks."""
