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
    reads_dataset: ClassVar[bool] = False
    """Whether it learns from the steps in `dataset.path`."""
    takes_choices: ClassVar[bool] = False
    """Whether it learns in envs with discrete actions."""
    has_gaussian_policy: ClassVar[bool] = False
    """Whether its policy, where actions are continuous, is a Gaussian that is not squashed."""
    trains_world_model: ClassVar[bool] = False
    """Whether it learns with world models, and with no other network."""
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

    @property
    def num_stored_states(self) -> int:
        """Recurrent states of networks that are stored with each step."""
        return self.num_networks

    @property
    def saves_steps(self) -> bool:
        """Whether checkpoints hold the stored steps."""
        return False

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

    def num_iterations(self, cfg: ExperimentConfig, world_size: int) -> int:
        """Whole iterations of the run, where `world_size` processes train together."""
        return cfg.training.total_steps // (cfg.steps_per_iteration * world_size)

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


OF_REPLAY = {
    "prioritized": ("priority_exponent", "priority_correction"),
    "her": ("relabelled_share",),
    "sequences": ("sequence_length", "burn_in"),
}
"""Kind of replay buffer -> the settings that it alone has."""


class BufferSettings(RolloutSettings):
    """Settings of an algorithm that learns from a buffer of its newest steps while it collects."""

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
    learning_starts: Annotated[int, Field(ge=0, le=2**31 - 1)] = 5_000
    """Environment steps with random actions, over all worlds, before anything is learned."""
    save_buffer: Literal["always", "last", "never"] = "last"
    """Checkpoints with the replay buffer; without it a continued run first collects learning_starts steps."""

    def stored_steps(self, cfg: ExperimentConfig) -> int:
        return self.buffer_size

    @property
    def saves_steps(self) -> bool:
        return self.save_buffer != "never"

    def samples_per_update(self, num_envs: int) -> int:
        return self.batch_size

    def check(self, cfg: ExperimentConfig) -> None:
        if cfg.training.overlap and self.horizon > 1:
            raise cross_field_error(
                field="algorithm.horizon",
                value=self.horizon,
                problem="the policy would change between the steps of an iteration with training.overlap",
                fix="set it to 1, or training.overlap to false",
            )
        self._check_learns(cfg)

    def _check_learns(self, cfg: ExperimentConfig) -> None:
        """Refuse a run that is too short to learn anything."""
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

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        if self.buffer_size < max(self.batch_size, cfg.env.num_envs):
            least = max(self.batch_size, cfg.env.num_envs)
            raise cross_field_error(
                field="algorithm.buffer_size",
                value=self.buffer_size,
                problem="must hold at least one minibatch and one step of every world",
                fix=f"set it to {least} or more",
            )
        super().check_num_envs(cfg)


class ReplaySettings(BufferSettings):
    """Settings of an algorithm that learns from single steps, or windows of them, of a replay buffer."""

    n_step: Annotated[int, Field(ge=1, le=1000)] = 1
    """Most steps whose rewards are summed before the critic's estimate takes over; sums end with episodes."""
    storage: Literal["float32", "bfloat16"] = "float32"
    """Precision of stored observations; bfloat16 takes half the memory and keeps two digits."""
    replay: Literal["uniform", "prioritized", "her", "sequences"] = "uniform"
    """uniform; prioritized: by the critics' last error; her: hindsight goals; sequences: windows of steps."""
    priority_exponent: Fraction = 0.6
    """How much the priorities count; 0 samples uniformly."""
    priority_correction: Fraction = 0.4
    """How far the loss undoes that steps are not equally likely; 1 in full."""
    symmetry: bool = False
    """Whether every second sample of a minibatch is its left-right mirror image, which the task declares."""
    relabelled_share: Fraction = 0.8
    """Share of the samples whose goal is replaced by one that was achieved later in the episode."""
    sequence_length: Annotated[int, Field(ge=1, le=2**16)] = 32
    """Steps in a row of one world that are learned from together, by networks with a state."""
    burn_in: Annotated[int, Field(ge=0, le=2**16)] = 16
    """Steps before them that are only run through, so that states fit the weights of now."""

    def bytes_per_step(self, observations: int, pixels: int, num_actions: int) -> int:
        of_numbers = observations // 2 if self.storage == "bfloat16" else observations
        # A priority and its sums, or the age of the episode.
        beside = {"prioritized": 8, "her": 4}.get(self.replay, 0)
        # Observations before and after the step, action and reward, three flags.
        return 2 * (of_numbers + pixels) + 4 * (num_actions + 1) + 3 + beside

    @property
    def num_stored_states(self) -> int:
        return 1  # the policy's: critics begin with zeros

    @property
    def window_length(self) -> int:
        """Steps of one world that a window of the buffer has: the last ones are for n-step returns."""
        return self.burn_in + self.sequence_length + self.n_step - 1

    def divided_among_shards(self, cfg: ExperimentConfig) -> tuple[str, int]:
        each = self.sequence_length if self.replay == "sequences" else 1
        return "algorithm.batch_size", self.batch_size // each

    def check(self, cfg: ExperimentConfig) -> None:
        self._check_network(cfg)
        self._check_of_other_replay()
        if self.replay == "sequences" and self.batch_size % self.sequence_length:
            raise cross_field_error(
                field="algorithm.batch_size",
                value=self.batch_size,
                problem=f"must be a multiple of algorithm.sequence_length = {self.sequence_length}",
                fix="change one of them",
            )
        if self.replay == "her" and cfg.env.observation_history > 1:
            raise cross_field_error(
                field="env.observation_history",
                value=cfg.env.observation_history,
                problem="algorithm.replay = her replaces the goal in the newest observation alone",
                fix="remove it, or set algorithm.replay to uniform",
            )
        if self.replay == "her" and round(self.relabelled_share * self.batch_size) == 0:
            raise cross_field_error(
                field="algorithm.relabelled_share",
                value=self.relabelled_share,
                problem=f"relabels none of algorithm.batch_size = {self.batch_size} samples",
                fix="raise it, or set algorithm.replay to uniform",
            )
        if self.symmetry and (self.batch_size == 1 or cfg.network.has_state):
            problem, fix = (
                "has no effect with algorithm.batch_size = 1",
                "remove it, or set that to 2 or more",
            )
            if cfg.network.has_state:
                problem, fix = "the mirror image of a network's state is not known", "set it to false"
            raise cross_field_error(field="algorithm.symmetry", value=True, problem=problem, fix=fix)
        super().check(cfg)

    def _check_network(self, cfg: ExperimentConfig) -> None:
        """Refuse a network that does not learn from what the buffer samples."""
        network, in_windows = cfg.network, self.replay == "sequences"
        if network.reads_pixels:
            problem = f"algorithm {self.name} does not learn from networks with pixels"
            fix = "name mlp or another network of vectors"
        elif network.has_state and not in_windows:
            problem = f"it has a state, and algorithm.replay = {self.replay} samples single steps"
            fix = "set algorithm.replay to sequences, or name a network without a state"
        elif in_windows and not network.has_state:
            problem = "it has no state, so algorithm.replay = sequences has no effect that other buffers lack"
            fix = "set algorithm.replay to uniform"
            if not self.keeps_batch_statistics:
                fix += ", or name a network with a state, such as gru"
        else:
            return
        raise cross_field_error(field="network.name", value=network.name, problem=problem, fix=fix)

    def _check_of_other_replay(self) -> None:
        """Refuse settings of another kind of replay buffer."""
        for replay, keys in OF_REPLAY.items():
            for key in keys:
                value = getattr(self, key)
                if self.replay != replay and value != type(self).model_fields[key].default:
                    raise cross_field_error(
                        field=f"algorithm.{key}",
                        value=value,
                        problem=f"has no effect with algorithm.replay = {self.replay}",
                        fix=f"remove it, or set algorithm.replay to {replay}",
                    )

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        super().check_num_envs(cfg)
        length = self.buffer_size // cfg.env.num_envs
        if self.replay == "sequences" and self.window_length > length:
            raise cross_field_error(
                field="algorithm.sequence_length",
                value=self.sequence_length,
                problem=f"a window of burn_in + sequence_length + n_step - 1 = {self.window_length} steps "
                f"does not fit in a replay buffer with {length} steps of each world",
                fix="lower one of them, or raise algorithm.buffer_size",
            )
        if self.n_step > length:
            raise cross_field_error(
                field="algorithm.n_step",
                value=self.n_step,
                problem=f"the replay buffer holds {length} steps of each world",
                fix=f"set it to {length} or less, or raise algorithm.buffer_size",
            )
