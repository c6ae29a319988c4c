"""Settings of DreamerV3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.config.section import Count, Fraction, NonNegative, Positive, cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig

FIXED: dict[str, Any] = {"replay": "sequences", "burn_in": 0, "n_step": 1, "symmetry": False}
"""What replay must be: states are stored and renewed, returns are imagined."""


class DreamerSettings(ReplaySettings):
    """A world model learned from replay, and a policy and a critic that learn in its imagination."""

    num_networks: ClassVar[int] = 3
    trains_world_model: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("network.init_log_std", "compute.autocast")

    name: Literal["dreamer"] = "dreamer"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    replay: Literal["uniform", "prioritized", "her", "sequences"] = "sequences"
    """Must be sequences: windows of steps."""
    burn_in: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Must be 0: stored states are renewed whenever they are sampled."""
    updates_per_step: Annotated[float, Field(gt=0, le=10_000)] = 0.25
    """Optimizer steps for each environment step, over all worlds."""
    batch_size: Count = 512
    """Steps of one optimizer step, in windows of sequence_length."""
    learning_starts: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1_000
    """Environment steps with random actions, over all worlds, before anything is learned."""
    gamma: Fraction = 0.997
    """Discount of the reward, per step."""
    imagined_steps: Annotated[int, Field(ge=1, le=1000)] = 15
    """Steps that are imagined from a state of replay, to learn policy and critic from."""
    start_every: Count = 1
    """Imagination begins at every n-th step of a window."""
    td_lambda: Fraction = 0.95
    """Weight of the longer ones among the returns."""
    lr: Positive = 3e-4
    """Learning rate of everything."""
    max_relative_gradient: Positive = 0.3
    """A tensor's gradient with a larger norm, relative to that of its weights, is scaled down to it."""
    dynamics_coef: NonNegative = 1.0
    """Weight of the KL divergence that moves the prior towards the posterior."""
    representation_coef: NonNegative = 0.1
    """Weight of the KL divergence that moves the posterior towards the prior."""
    free_nats: NonNegative = 1.0
    """KL divergences below this are not reduced any further."""
    entropy_coef: NonNegative = 3e-4
    """Weight of the policy's entropy, where returns have a spread of 1."""
    replay_value_coef: NonNegative = 0.3
    """Weight of the critic's loss on the returns of recorded steps, beside imagined ones."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of the critic that its slow copy takes over at each update."""
    num_bins: Annotated[int, Field(ge=3, le=10_001)] = 255
    """Bins of predicted rewards and values; odd, so that one of them is zero."""
    largest_symlog: Annotated[float, Field(gt=0, le=50)] = 20.0
    """Symlog of the last bin: 20 is a value of 4.9e8, 10 is 22,025."""

    def check(self, cfg: ExperimentConfig) -> None:
        for key, needed in FIXED.items():
            if (value := getattr(self, key)) != needed:
                raise cross_field_error(
                    field=f"algorithm.{key}",
                    value=value,
                    problem=f"has no effect with algorithm.name = dreamer, which needs {needed}",
                    fix="remove it",
                )
        super().check(cfg)
        if self.num_bins % 2 == 0:
            raise cross_field_error(
                field="algorithm.num_bins",
                value=self.num_bins,
                problem="must be odd, so that one bin is zero",
                fix=f"set it to {self.num_bins + 1}",
            )
        if self.start_every > self.sequence_length:
            raise cross_field_error(
                field="algorithm.start_every",
                value=self.start_every,
                problem=f"is above algorithm.sequence_length = {self.sequence_length}",
                fix="set it to that or less",
            )

    def _check_network(self, cfg: ExperimentConfig) -> None:
        """Refuse pictures that the network cannot halve; networks that are no world model were refused."""
        if cfg.env.pixels is None:
            return
        multiple = 2 ** len(getattr(cfg.network, "channels", ()))
        for key in ("width", "height"):
            if (value := getattr(cfg.env.pixels, key)) % multiple:
                raise cross_field_error(
                    field=f"env.pixels.{key}",
                    value=value,
                    problem=f"network.channels halve it layer by layer; it must be a multiple of {multiple}",
                    fix=f"set it to {value - value % multiple + multiple}, or remove a layer",
                )
