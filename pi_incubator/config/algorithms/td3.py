"""Settings of TD3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.config.section import Count, NonNegative, Positive, cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class TD3Settings(ReplaySettings):
    """Twin delayed deep deterministic policy gradients, and a replay buffer."""

    num_networks: ClassVar[int] = 6
    unused: ClassVar[tuple[str, ...]] = ("network.init_log_std",)

    name: Literal["td3"] = "td3"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam, or muon for the matrices of hidden layers and adam for the rest; learning rates fit both."""
    lr_actor: Positive = 3e-4
    """Learning rate of the policy."""
    lr_critic: Positive = 3e-4
    """Learning rate of the critics."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of policy and critics that their targets take over when they move."""
    actor_every: Count = 2
    """Updates of the critics for each update of the policy and of the targets."""
    exploration_std: Positive = 0.1
    """Standard deviation of the noise on actions that are tried out, in halves of the action's range."""
    exploration_std_min: NonNegative | None = None
    """That of the world with the least noise; the others lie evenly between. null: all have the same."""
    smoothing_std: NonNegative = 0.2
    """The same, of the noise on the target policy's actions."""
    smoothing_clip: Positive = 0.5
    """Largest noise on the target policy's actions, in halves of the action's range."""
    reward_scale: Positive = 1.0
    """Factor on the reward that the algorithm sees; reported returns are not scaled."""

    def check(self, cfg: ExperimentConfig) -> None:
        super().check(cfg)
        if self.exploration_std_min is not None and self.exploration_std_min > self.exploration_std:
            raise cross_field_error(
                field="algorithm.exploration_std_min",
                value=self.exploration_std_min,
                problem=f"is above algorithm.exploration_std = {self.exploration_std}",
                fix="set it to that or less",
            )

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        super().check_num_envs(cfg)
        if self.exploration_std_min is not None and cfg.env.num_envs == 1:
            raise cross_field_error(
                field="algorithm.exploration_std_min",
                value=self.exploration_std_min,
                problem="has no effect on a single world",
                fix="remove it, or raise env.num_envs",
            )
