"""Settings of policy gradients through a learned model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithm import BufferSettings
from pi_incubator.config.section import (
    Count,
    Fraction,
    NonNegative,
    Number,
    Positive,
    Sizes,
    cross_field_error,
)

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class WorldModelGradientSettings(BufferSettings):
    """Backpropagation of the imagined return through a learned model of the dynamics."""

    num_networks: ClassVar[int] = 6
    unused: ClassVar[tuple[str, ...]] = ("network.init_log_std",)

    name: Literal["world_model_gradient"] = "world_model_gradient"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    sequence_length: Annotated[int, Field(ge=1, le=2**16)] = 8
    """Steps in a row of one world that the model predicts, each from its own prediction of the one before."""
    num_models: Annotated[int, Field(ge=1, le=64)] = 4
    """Networks of the model; each learns from its own windows, and each imagined rollout follows one."""
    model_sizes: Sizes = (256, 256)
    """Width of each hidden layer of the model, in units."""
    imagined_steps: Annotated[int, Field(ge=1, le=1024)] = 16
    """Steps that the policy takes in the model before the critic's estimate takes over."""
    starts_per_window: Count = 2
    """Imagined rollouts that start in each window of the minibatch, evenly spaced over its steps."""
    return_lambda: Fraction = 0.95
    """Weight of longer imagined returns: 0 is one step and the critic, 1 is all steps and then the critic."""
    observation_noise: NonNegative = 0.05
    """Noise on what the policy sees in the model, in standard deviations of the observation."""
    noise_repeat: Annotated[int, Field(ge=1, le=2**16)] = 16
    """Most steps in a row with the same exploration noise; 1 makes it new at every step."""
    lr_model: Positive = 1e-3
    """Learning rate of the model."""
    lr_actor: Positive = 5e-4
    """Learning rate of the policy."""
    lr_critic: Positive = 1e-3
    """Learning rate of the critics."""
    lr_temperature: Positive = 1e-3
    """Learning rate of the temperature."""
    lr_share_at_end: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the learning rates of model, policy and critics that is left at the end of a linear fall."""
    max_grad_norm: Positive = 1.0
    """Gradients of model, policy and critics with a larger global L2 norm are scaled down to it."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of the critics that their targets take over at each update."""
    initial_temperature: Positive = 0.1
    """Weight of the entropy beside the reward, before it is tuned."""
    target_entropy: Number = -1.0
    """Entropy that the temperature is tuned to, for each dimension of the action, in nats."""
    reward_scale: Positive = 1.0
    """Factor on the reward that the algorithm sees; reported returns are not scaled."""

    def divided_among_shards(self, cfg: ExperimentConfig) -> tuple[str, int]:
        return "algorithm.batch_size", self.batch_size // (self.sequence_length * self.num_models)

    def check(self, cfg: ExperimentConfig) -> None:
        super().check(cfg)
        network = cfg.network
        if network.has_state or network.reads_pixels:
            what = "pixels" if network.reads_pixels else "a state"
            raise cross_field_error(
                field="network.name",
                value=network.name,
                problem=f"algorithm {self.name} does not learn networks with {what}",
                fix="name mlp or another network without",
            )
        if cfg.env.observation_history > 1:
            raise cross_field_error(
                field="env.observation_history",
                value=cfg.env.observation_history,
                problem=f"algorithm {self.name} imagines single observations",
                fix="remove it",
            )
        each = self.sequence_length * self.num_models
        if self.batch_size % each:
            raise cross_field_error(
                field="algorithm.batch_size",
                value=self.batch_size,
                problem=f"must be a multiple of algorithm.sequence_length * algorithm.num_models = {each}",
                fix="change one of them",
            )
        if self.sequence_length % self.starts_per_window:
            raise cross_field_error(
                field="algorithm.starts_per_window",
                value=self.starts_per_window,
                problem=f"must divide algorithm.sequence_length = {self.sequence_length}",
                fix="change one of them",
            )

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        super().check_num_envs(cfg)
        length = self.buffer_size // cfg.env.num_envs
        if self.sequence_length > length:
            raise cross_field_error(
                field="algorithm.sequence_length",
                value=self.sequence_length,
                problem=f"the replay buffer holds {length} steps of each world",
                fix=f"set it to {length} or less, or raise algorithm.buffer_size",
            )
