"""Settings of the soft actor-critic."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.config.section import Fraction, Number, Positive


class SACSettings(ReplaySettings):
    """Soft actor-critic: twin critics, a tuned temperature, and a replay buffer."""

    num_networks: ClassVar[int] = 5
    takes_choices: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("network.init_log_std",)

    name: Literal["sac"] = "sac"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam, or muon for the matrices of hidden layers and adam for the rest; learning rates fit both."""
    lr_actor: Positive = 3e-4
    """Learning rate of the policy."""
    lr_critic: Positive = 1e-3
    """Learning rate of the critics."""
    lr_temperature: Positive = 3e-4
    """Learning rate of the temperature."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of the critics that their targets take over at each update."""
    initial_temperature: Positive = 1.0
    """Weight of the entropy beside the reward, before it is tuned."""
    target_entropy: Number = -1.0
    """Entropy that the temperature is tuned to, for each dimension of a continuous action, in nats."""
    entropy_share: Fraction = 0.5
    """Entropy that the temperature is tuned to where actions are discrete, as a share of the largest one."""
    reward_scale: Positive = 1.0
    """Factor on the reward that the algorithm sees; reported returns are not scaled."""
