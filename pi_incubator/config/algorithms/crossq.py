"""Settings of CrossQ."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.batch_norm_sac import BatchNormSACSettings
from pi_incubator.config.section import Count, Number, Positive


class CrossQSettings(BatchNormSACSettings):
    """Soft actor-critic without target networks; its critics have batch normalization."""

    num_networks: ClassVar[int] = 3
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)

    name: Literal["crossq"] = "crossq"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    lr: Positive = 1e-3
    """Learning rate of policy, critics and temperature."""
    actor_every: Count = 3
    """Updates of the critics for each update of the policy."""
    initial_temperature: Positive = 1.0
    """Weight of the entropy beside the reward, before it is tuned."""
    target_entropy: Number = -1.0
    """Entropy that the temperature is tuned to, for each dimension of the action, in nats."""
    reward_scale: Positive = 1.0
    """Factor on the reward that the algorithm sees; reported returns are not scaled."""
