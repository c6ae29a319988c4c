"""Settings of group relative policy optimization."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.policy_gradient import ClippedSettings, either, nearest_multiples
from pi_incubator.config.section import cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class GRPOSettings(ClippedSettings):
    """Clipped policy gradient without a critic: worlds are compared with copies of themselves."""

    num_networks: ClassVar[int] = 1

    name: Literal["grpo"] = "grpo"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    group_size: Annotated[int, Field(ge=2, le=2**16)] = 8
    """Worlds that begin each rollout as copies of one of them; divides env.num_envs."""

    def num_envs_multiple(self) -> int:
        return lcm(super().num_envs_multiple(), self.group_size)

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
