"""Settings of group relative policy optimization."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.policy_gradient import ClippedSettings, either, nearest_multiples
from pi_incubator.config.section import NonNegative, cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class GRPOSettings(ClippedSettings):
    """Clipped policy gradient without a critic: worlds are compared with copies of themselves."""

    num_networks: ClassVar[int] = 1

    name: Literal["grpo"] = "grpo"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    group_size: Annotated[int, Field(ge=2, le=2**16)] = 8
    """Worlds that begin each rollout as copies of one of them; divides env.num_envs."""
    normalize: Literal["batch", "group"] = "batch"
    """Whose standard deviation divides advantages: of all groups, or of each group itself as in the paper."""
    lookahead: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Last steps of a rollout that only count in the returns of earlier ones, and are not learned from."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL divergence from the policy that the run began with; 0 for training from scratch."""

    @property
    def learned_horizon(self) -> int:
        return max(1, self.horizon - self.lookahead)

    @property
    def learned_steps(self) -> str:
        return f"algorithm.horizon - algorithm.lookahead = {self.learned_horizon}"

    def describe_batch(self, num_envs: int) -> str:
        batch = num_envs * self.learned_horizon
        return f"env.num_envs * (algorithm.horizon - algorithm.lookahead) = {batch}"

    def num_envs_multiple(self) -> int:
        return lcm(super().num_envs_multiple(), self.group_size)

    def check(self, cfg: ExperimentConfig) -> None:
        if self.lookahead >= self.horizon:
            raise cross_field_error(
                field="algorithm.lookahead",
                value=self.lookahead,
                problem=f"leaves none of algorithm.horizon = {self.horizon} steps to learn from",
                fix="lower it, or raise algorithm.horizon",
            )
        super().check(cfg)
        if self.kl_coef and cfg.network.has_state:
            raise cross_field_error(
                field="algorithm.kl_coef",
                value=self.kl_coef,
                problem=f"network {cfg.network.name} has a state, and that of the first policy is not kept",
                fix="set it to 0, or name a network without a state",
            )

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        num_envs = cfg.env.num_envs
        if num_envs % self.group_size:
            nearest = either(nearest_multiples(self.group_size, num_envs))
            raise cross_field_error(
                field="algorithm.group_size",
                value=self.group_size,
                problem=f"must divide env.num_envs = {num_envs}",
                fix=f"change it, or set env.num_envs to {nearest}",
            )
        super().check_num_envs(cfg)
