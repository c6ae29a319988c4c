"""What the settings of PPO, A2C and GRPO share."""

from __future__ import annotations

from math import gcd, isqrt
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithm import RolloutSettings
from pi_incubator.config.section import Count, Fraction, NonNegative, Positive, cross_field_error
from pi_incubator.config.without_effect import is_default

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig

ADAPTIVE = ("desired_kl", "lr_min", "lr_max")
"""Settings of the adaptive learning rate."""


class PolicyGradientSettings(RolloutSettings):
    """An on-policy algorithm: minibatches of a rollout, and a scheduled learning rate."""

    takes_choices: ClassVar[bool] = True
    has_gaussian_policy: ClassVar[bool] = True

    minibatch_size: Count = 512
    """Samples of one optimizer step; divides env.num_envs * horizon; with a state a multiple of horizon."""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam, or muon for the matrices of hidden layers and adam for the rest; learning rates fit both."""
    lr: Positive = 3e-4
    """Learning rate of the optimizer, the initial one if it is scheduled."""
    lr_schedule: Literal["constant", "linear"] = "linear"
    """constant, or linear decay to zero over the run."""
    gamma: Fraction = 0.99
    """Discount of the reward, per step."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    symmetry_coef: NonNegative = 0.0
    """Weight of how far the policy's mean is from its left-right mirror image, which the task declares."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger global L2 norm are scaled down to it."""
    reward_scale: Positive = 1.0
    """Factor on the reward that the algorithm sees; reported returns are not scaled."""

    @property
    def num_passes(self) -> int:
        """How often a rollout is gone through."""
        return 1

    @property
    def learned_horizon(self) -> int:
        """Steps of each world that are learned from in an iteration."""
        return self.horizon

    @property
    def learned_steps(self) -> str:
        """`learned_horizon` in words."""
        return f"algorithm.horizon = {self.horizon}"

    def describe_batch(self, num_envs: int) -> str:
        """The steps that an iteration learns from in words."""
        return self.describe_iteration(num_envs)

    def samples_per_update(self, num_envs: int) -> int:
        return min(self.minibatch_size, num_envs * self.learned_horizon)

    def divided_among_shards(self, cfg: ExperimentConfig) -> tuple[str, int]:
        # The sequences of a network with a state are not divided.
        samples = self.learned_horizon if cfg.network.has_state else 1
        return "algorithm.minibatch_size", self.minibatch_size // samples

    def num_envs_multiple(self) -> int:
        return self.minibatch_size // gcd(self.minibatch_size, self.learned_horizon)

    def check(self, cfg: ExperimentConfig) -> None:
        if cfg.network.has_state and self.symmetry_coef:
            raise cross_field_error(
                field="algorithm.symmetry_coef",
                value=self.symmetry_coef,
                problem=f"network {cfg.network.name} has a state, whose mirror image is not known",
                fix="remove it, or name a network without a state",
            )
        steps = self.learned_horizon
        if cfg.network.has_state and self.minibatch_size % steps:
            multiple = -(-self.minibatch_size // steps) * steps
            raise cross_field_error(
                field="algorithm.minibatch_size",
                value=self.minibatch_size,
                problem=f"network {cfg.network.name} learns from whole sequences of {self.learned_steps}",
                fix=f"set it to {multiple} or another multiple of that",
            )

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        num_envs = cfg.env.num_envs
        batch = num_envs * self.learned_horizon
        if batch % self.minibatch_size:
            sizes = _nearest_divisors(batch, self.minibatch_size)
            envs = nearest_multiples(self.num_envs_multiple(), num_envs)
            raise cross_field_error(
                field="algorithm.minibatch_size",
                value=self.minibatch_size,
                problem=f"must divide {self.describe_batch(num_envs)}",
                fix=f"set it to {either(sizes)}, or env.num_envs to {either(envs)}",
            )
        super().check_num_envs(cfg)


class ClippedSettings(PolicyGradientSettings):
    """The clipped surrogate of PPO, in several epochs."""

    num_epochs: Count = 5
    """Passes over the collected batch in one iteration."""
    # Its type has one choice more than that of the base, which only A2C has.
    lr_schedule: Literal["constant", "linear", "adaptive"] = "linear"  # type: ignore[assignment]
    """constant, linear decay to zero over the run, or adaptive: steered towards desired_kl."""
    desired_kl: Positive = 0.01
    """KL divergence between successive policies that the adaptive schedule aims at, in nats."""
    lr_min: Positive = 1e-5
    """Lower bound of the adaptive learning rate."""
    lr_max: Positive = 1e-2
    """Upper bound of the adaptive learning rate."""
    clip_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the probability ratio may leave 1 before its gradient is cut."""

    @property
    def num_passes(self) -> int:
        return self.num_epochs

    def check(self, cfg: ExperimentConfig) -> None:
        if self.lr_schedule == "adaptive":
            self._check_lr_range()
        else:
            for key in ADAPTIVE:
                self._check_adapts(cfg, key)
        super().check(cfg)

    def _check_adapts(self, cfg: ExperimentConfig, key: str) -> None:
        """Refuse a setting of the adaptive schedule beside another schedule."""
        if not is_default(cfg, f"algorithm.{key}"):
            raise cross_field_error(
                field=f"algorithm.{key}",
                value=getattr(self, key),
                problem=f"has no effect with algorithm.lr_schedule = {self.lr_schedule}",
                fix="remove it, or set algorithm.lr_schedule to adaptive",
            )

    def _check_lr_range(self) -> None:
        """The adaptive learning rate begins within its bounds."""
        for key, fits, fix in (
            ("lr_min", self.lr_min <= self.lr, f"set it to {self.lr:g} or less, or algorithm.lr higher"),
            ("lr_max", self.lr_max >= self.lr, f"set it to {self.lr:g} or more, or algorithm.lr lower"),
        ):
            if not fits:
                problem = f"algorithm.lr = {self.lr:g} is not within the bounds of the adaptive schedule"
                value = getattr(self, key)
                raise cross_field_error(field=f"algorithm.{key}", value=value, problem=problem, fix=fix)


def _nearest_divisors(number: int, near: int) -> list[int]:
    """The divisors of `number` next below and next above `near`, those that exist."""
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below = [d for d in divisors if d < near]
    above = [d for d in divisors if d > near]
    return below[-1:] + above[:1]


def nearest_multiples(factor: int, near: int) -> list[int]:
    """The positive multiples of `factor` next below and next above `near`."""
    below = near // factor * factor
    return [multiple for multiple in (below, below + factor) if multiple > 0]


def either(values: list[int]) -> str:
    """The values in words, as a choice."""
    return " or ".join(map(str, values))
