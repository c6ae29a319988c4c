"""What the settings of every algorithm share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.section import Count, Fraction, Section, cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class AlgorithmSettings(Section):
    """Settings of an algorithm; a subclass in `config/algorithms/` adds its own."""

    unused: ClassVar[tuple[str, ...]] = ()
    """`section.key` of settings elsewhere that have no effect with this algorithm."""
    storage_field: ClassVar[str] = "env.num_envs"
    """The setting to lower where the stored steps do not fit in memory."""
    num_networks: ClassVar[int] = 2
    """Networks as large as the policy's, itself included: for the estimate of memory."""
    keeps_batch_statistics: ClassVar[bool] = False
    """Whether it maintains the moments of networks with batch normalization."""
    iteration_fields: ClassVar[str] = "env.num_envs"
    """The settings to lower where an iteration is too long."""
    runs_read: ClassVar[tuple[str, ...]] = ()
    """Fields that name folders of runs that a training reads."""
    files_read: ClassVar[tuple[str, ...]] = ()
    """Fields that name files that a training reads."""
    files_written: ClassVar[tuple[str, ...]] = ()
    """Fields that name files outside of the run's folder that a training writes."""

    name: str
    """Algorithm: the name of a file in pi_incubator/algorithms."""

    @abstractmethod
    def steps_per_iteration(self, num_envs: int) -> int:
        """Environment steps of one iteration, over `num_envs` worlds."""

    @abstractmethod
    def stored_steps(self, cfg: ExperimentConfig) -> int:
        """Environment steps whose data is on the device at once; copies count."""

    def bytes_per_step(self, observations: int, pixels: int, num_actions: int) -> int:
        """Of a stored step whose observations take so many bytes: as float32, and beside them as pixels."""
        return observations + pixels + 4 * (2 * num_actions + 8)

    @abstractmethod
    def samples_per_update(self, num_envs: int) -> int:
        """Samples of one optimizer step."""

    def divided_among_shards(self, cfg: ExperimentConfig) -> tuple[str, int]:
        """A setting, and the number behind it that shards of worlds divide; see `compute.shards`."""
        return "env.num_envs", cfg.env.num_envs

    def num_envs_multiple(self) -> int:
        """The number of worlds must be a multiple of this."""
        return 1

    def check(self, cfg: ExperimentConfig) -> None:
        """Check these settings against the rest of the experiment; the number of worlds may be open.

        Raises:
            PydanticCustomError: of `cross_field_error`, where they do not fit.
        """

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        """Check that an iteration of `cfg.env.num_envs` worlds, which is given, fits into the run.

        Raises:
            PydanticCustomError: of `cross_field_error`, where it does not.
        """
        steps = self.steps_per_iteration(cfg.env.num_envs)
        if cfg.training.total_steps < steps:
            raise cross_field_error(
                field="training.total_steps",
                value=cfg.training.total_steps,
                problem=f"must be at least one iteration, {self.describe_iteration(cfg.env.num_envs)}",
                fix=f"set it to {steps} or more, or lower {self.iteration_fields}",
            )

    def describe_iteration(self, num_envs: int) -> str:
        """The environment steps of an iteration in words, such as `64 worlds * 32 steps = 2048`."""
        return f"{self.steps_per_iteration(num_envs)} steps"


class RolloutSettings(AlgorithmSettings):
    """Settings of an algorithm that collects a rollout of every world for each iteration."""

    iteration_fields: ClassVar[str] = "env.num_envs or algorithm.horizon"

    horizon: Annotated[int, Field(ge=1, le=2**16)] = 64
    """Steps of each world collected for one iteration."""

    def steps_per_iteration(self, num_envs: int) -> int:
        return num_envs * self.horizon

    def stored_steps(self, cfg: ExperimentConfig) -> int:
        # The rollout, its shuffled copy for an epoch, and the copy that an update in the background reads.
        copies = 3 if cfg.training.overlap else 2
        return copies * self.steps_per_iteration(cfg.env.num_envs)

    def describe_iteration(self, num_envs: int) -> str:
        steps = self.steps_per_iteration(num_envs)
        return f"env.num_envs * algorithm.horizon = {num_envs} * {self.horizon} = {steps}"


class ReplaySettings(RolloutSettings):
    """Settings of an algorithm that learns from a replay buffer while it collects."""

    storage_field: ClassVar[str] = "algorithm.buffer_size"

    horizon: Annotated[int, Field(ge=1, le=2**16)] = 1
    """Steps of each world between two rounds of updates."""
    updates_per_step: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """Optimizer steps for each environment step, over all worlds."""
    batch_size: Count = 256
    """Samples of one optimizer step."""
    buffer_size: Count = 1_000_000
    """Newest environment steps that are learned from, over all worlds."""
    gamma: Fraction = 0.99
    """Discount of the reward, per step."""
    n_step: Annotated[int, Field(ge=1, le=1000)] = 1
    """Most steps whose rewards are summed before the critic's estimate takes over; sums end with episodes."""
    storage: Literal["float32", "bfloat16"] = "float32"
    """Precision of stored observations; bfloat16 takes half the memory and keeps two digits."""
    replay: Literal["uniform", "prioritized"] = "uniform"
    """Each step is as likely as any other, or in proportion to how far the critics were last off at it."""
    priority_exponent: Fraction = 0.6
    """How much the priorities count; 0 samples uniformly."""
    priority_correction: Fraction = 0.4
    """How far the loss undoes that steps are not equally likely; 1 in full."""
    symmetry: bool = False
    """Whether every second sample of a minibatch is its left-right mirror image, which the task declares."""
    learning_starts: Annotated[int, Field(ge=0, le=2**31 - 1)] = 5_000
    """Environment steps with random actions, over all worlds, before anything is learned."""
    save_buffer: Literal["always", "last", "never"] = "last"
    """Checkpoints with the replay buffer; without it a continued run first collects learning_starts steps."""

    def stored_steps(self, cfg: ExperimentConfig) -> int:
        return self.buffer_size

    def bytes_per_step(self, observations: int, pixels: int, num_actions: int) -> int:
        of_numbers = observations // 2 if self.storage == "bfloat16" else observations
        # Observations before and after the step, action and reward, three flags; a priority and its sums.
        return 2 * (of_numbers + pixels) + 4 * (num_actions + 1) + 3 + 8 * (self.replay == "prioritized")

    def samples_per_update(self, num_envs: int) -> int:
        return self.batch_size

    def divided_among_shards(self, cfg: ExperimentConfig) -> tuple[str, int]:
        return "algorithm.batch_size", self.batch_size

    def check(self, cfg: ExperimentConfig) -> None:
        network = cfg.network
        if network.has_state or network.sees_pixels:
            kind = "a state" if network.has_state else "pixels"
            raise cross_field_error(
                field="network.name",
                value=network.name,
                problem=f"algorithm {self.name} learns from single steps, not from networks with {kind}",
                fix="name mlp or another network of vectors without a state",
            )
        if cfg.training.overlap and self.horizon > 1:
            raise cross_field_error(
                field="algorithm.horizon",
                value=self.horizon,
                problem="the policy would change between the steps of an iteration with training.overlap",
                fix="set it to 1, or training.overlap to false",
            )
        if self.replay == "uniform":
            self._check_priorities()
        if self.symmetry and self.batch_size == 1:
            problem, fix = (
                "has no effect with algorithm.batch_size = 1",
                "remove it, or set that to 2 or more",
            )
            raise cross_field_error(field="algorithm.symmetry", value=True, problem=problem, fix=fix)
        if self.learning_starts >= cfg.training.total_steps:
            raise cross_field_error(
                field="algorithm.learning_starts",
                value=self.learning_starts,
                problem=f"nothing is learned in training.total_steps = {cfg.training.total_steps}",
                fix="set it below, or train for longer",
            )
        learning_steps = cfg.training.total_steps - self.learning_starts
        if learning_steps * self.updates_per_step < 1:
            raise cross_field_error(
                field="algorithm.updates_per_step",
                value=self.updates_per_step,
                problem=f"makes no update in the {learning_steps} steps after algorithm.learning_starts",
                fix="raise it, or train for longer",
            )

    def _check_priorities(self) -> None:
        """Refuse settings of priorities where there are none."""
        for key in ("priority_exponent", "priority_correction"):
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise cross_field_error(
                    field=f"algorithm.{key}",
                    value=value,
                    problem="has no effect with algorithm.replay = uniform",
                    fix="remove it, or set algorithm.replay to prioritized",
                )

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        if self.buffer_size < max(self.batch_size, cfg.env.num_envs):
            least = max(self.batch_size, cfg.env.num_envs)
            raise cross_field_error(
                field="algorithm.buffer_size",
                value=self.buffer_size,
                problem="must hold at least one minibatch and one step of every world",
                fix=f"set it to {least} or more",
            )
        length = self.buffer_size // cfg.env.num_envs
        if self.n_step > length:
            raise cross_field_error(
                field="algorithm.n_step",
                value=self.n_step,
                problem=f"the replay buffer holds {length} steps of each world",
                fix=f"set it to {length} or less, or raise algorithm.buffer_size",
            )
        super().check_num_envs(cfg)
