"""Settings of perceptrons with batch normalization."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.network import NetworkSettings
from pi_incubator.config.section import Sizes


class BatchNormSettings(NetworkSettings):
    """Fully connected layers with batch normalization, as of CrossQ."""

    needs_batch_statistics: ClassVar[bool] = True

    name: Literal["batch_norm"] = "batch_norm"
    """Network: the name of a file in pi_incubator/networks."""
    hidden_sizes: Sizes = (256, 256)
    """Width of each hidden layer of the policy, in units."""
    critic_sizes: Sizes = (512, 512)
    """Width of each hidden layer of each critic, in units."""
    normalize_observations: bool = False
    """Whether observations are normalized before the first layer, which normalizes them by itself."""
