"""What an experiment file may say: one frozen model a section, one docstring a field.

Field names are the file's keys; units are in the names. A value of another type is an error,
never a conversion: "64" is no integer and true is no number.
"""

from __future__ import annotations

from math import gcd, isqrt
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from pi_incubator.config.distillation import DistillationSection
from pi_incubator.config.randomization import RandomizationSection
from pi_incubator.config.section import Section, cross_field_error

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
# Files give a list, which is no tuple: the outer type is lenient, each size stays a strict integer.
Sizes = Annotated[tuple[Annotated[int, Field(ge=1, le=2**16)], ...], Field(strict=False, min_length=1)]
Threads = Annotated[int, Field(ge=0, le=1024)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]

MAX_NUM_ENVS = 2**20
OPEN = 0
"""The number of worlds in a config that says auto, until `pi_incubator.autosize` has chosen one."""


def _open_or_number(value: Any, validate: ValidatorFunctionWrapHandler) -> int:
    number: int = OPEN if value == "auto" else validate(value)
    return number


_NumEnvs = Annotated[int, Field(ge=1, le=MAX_NUM_ENVS)]
# An int for everyone who calculates with it: only what chooses the number ever sees an open one.
NumEnvs = Annotated[
    _NumEnvs,
    WrapValidator(_open_or_number, json_schema_input_type=_NumEnvs | Literal["auto"]),
    PlainSerializer(lambda number: "auto" if number == OPEN else number, when_used="json"),
]


class ExperimentSection(Section):
    """What the run is called and where it writes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "ant_ppo"
    """Name of the run and of its folder: letters, digits, '.', '_' and '-'."""
    output_dir: Name = "runs"
    """Folder that holds one folder a run, relative to the working directory."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1
    """Seed of every random number generator of the run."""


class PixelsSection(Section):
    """What is drawn of every world."""

    width: Annotated[int, Field(ge=8, le=4096)] = 64
    """Width of a picture, in pixels."""
    height: Annotated[int, Field(ge=8, le=4096)] = 64
    """Height of a picture, in pixels."""
    camera: Name | None = None
    """Camera of the model, or follow; null follows what moves freely, and else takes the first camera."""
    frames: Annotated[int, Field(ge=1, le=64)] = 3
    """Pictures in an observation, because one alone shows no velocity."""
    frame_gap: Annotated[int, Field(ge=1, le=64)] = 1
    """Control steps between two of these pictures."""
    gray: bool = False
    """Whether a picture has one channel instead of red, green and blue."""
    renderer: Literal["auto", "warp", "mujoco"] = "auto"
    """warp casts rays for all worlds at once, mujoco draws one after the other through OpenGL."""


class EnvSection(Section):
    """The simulated worlds."""

    name: Name = "ant"
    """Task: the name of a file in envs_gpu/tasks; or family/env, such as brax/ant, of envs_gpu/zoo."""
    backend: Literal["auto", "mujoco", "warp", "mjx", "newton"] = "auto"
    """Physics backend; auto takes warp on a GPU and mujoco on a CPU."""
    num_envs: NumEnvs = 64
    """Worlds stepped together as one batch; auto takes as many as still raise steps/s and fit in memory."""
    model: Name | None = None
    """Robot of a task that takes any, such as hold_pose: an MJCF file, relative to the working directory."""
    mjx_impl: Literal["jax", "warp"] = "jax"
    """Implementation that the mjx backend runs on; other backends do not read it."""
    max_contacts: Count | None = None
    """Contacts that worlds have room for on average (warp, newton, mjx on Warp); null counts the scene's."""
    max_constraints: Count | None = None
    """Constraint rows that every world has room for (warp, newton, mjx on Warp); null counts the scene's."""
    episode_length_s: Positive | None = None
    """Simulated seconds after which training cuts an episode off; null and evaluation go by the task."""
    observation_history: Annotated[int, Field(ge=1, le=1000)] = 1
    """Observations that the policy sees in one row, the last ones, oldest first."""
    pixels: PixelsSection | None = None
    """Pictures as an observation, for network.name=cnn; null draws none, {} those of the defaults."""


class GuardsSection(Section):
    """What is done about worlds that broke, beside restarting them and masking them out of the batch."""

    max_broken_share: Fraction = 0.5
    """Stop when more than this share of the worlds broke since the last report or save; 1 never stops."""
    history_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Control steps before the break that a dump of a broken world holds."""
    max_dumps: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Most dumps of broken worlds in the run's folder, in broken/; 0 writes none."""


class NetworkSection(Section):
    """The policy and value networks."""

    name: Name = "mlp"
    """Network: the name of a file in pi_incubator/networks."""
    hidden_sizes: Sizes = (64, 64)
    """Width of each hidden layer, in units; the first one of gru is the recurrent one."""
    channels: Sizes = (16, 32, 32)
    """Channels of each convolution, where there are any."""
    activation: Literal["tanh", "elu", "relu", "silu"] = "tanh"
    """Activation after each hidden layer."""
    init_log_std: Annotated[float, Field(ge=-20, le=5)] = 0.0
    """Initial natural logarithm of the action's standard deviation."""
    normalize_observations: bool = True
    """Whether observations are shifted and scaled by their running mean and standard deviation."""
    observation_clip: Positive = 10.0
    """Bound on normalized observations, in standard deviations."""


class AlgorithmSection(Section):
    """The learner: what it collects for an iteration and how it updates on it."""

    name: Name = "ppo"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    horizon: Annotated[int, Field(ge=1, le=2**16)] = 64
    """Steps of each world collected for one iteration."""
    num_epochs: Count = 5
    """Passes over the collected batch in one iteration."""
    minibatch_size: Count = 512
    """Samples of one optimizer step; divides env.num_envs * horizon; for gru a multiple of horizon."""
    lr: Positive = 3e-4
    """Learning rate of the optimizer, the initial one if it is scheduled."""
    lr_schedule: Literal["constant", "linear", "adaptive"] = "linear"
    """constant, linear decay to zero over the run, or adaptive: steered towards desired_kl."""
    desired_kl: Positive = 0.01
    """KL divergence between successive policies that the adaptive schedule aims at, in nats."""
    gamma: Fraction = 0.99
    """Discount of the reward, per step."""
    gae_lambda: Fraction = 0.95
    """Decay of generalized advantage estimation: 0 is one-step TD, 1 is Monte Carlo."""
    clip_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the probability ratio may leave 1 before its gradient is cut."""
    value_coef: NonNegative = 0.5
    """Weight of the value loss."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger global L2 norm are scaled down to it."""
    normalize_advantage: bool = True
    """Whether advantages are shifted and scaled to zero mean and unit standard deviation."""
    reward_scale: Positive = 1.0
    """Factor on the reward that the learner sees; reported returns are not scaled."""


class TrainingSection(Section):
    """How long to train and how often to report."""

    total_steps: Annotated[int, Field(ge=1, le=2**53)] = 3_000_000
    """Environment steps of the run, summed over all worlds."""
    log_every: Count = 10
    """Iterations between two reports of the metrics."""
    overlap: bool = False
    """Collect the next rollout while the last one is learned from, with a policy that is one update old."""


class ComputeSection(Section):
    """Which hardware to use and how much of it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of physics, policy and learner; auto takes a GPU when there is one."""
    num_threads: Threads = 0
    """CPU threads of one torch operation; 0 chooses for the machine."""
    physics_threads: Threads = 0
    """CPU threads of the mujoco backend; 0 takes all cores."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether act, task and a minibatch's step go through torch.compile; auto: in long runs, if one can."""
    tf32: bool = True
    """Whether float32 matrix products on CUDA round their inputs to TF32, which is several times faster."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Type in which the update multiplies matrices; weights and optimizer stay float32."""


class TrackingSection(Section):
    """Where metrics go."""

    backend: Name = "mlflow"
    """Tracker: the name of a file in pi_incubator/tracking; none records nothing."""
    uri: Name | None = None
    """Address of the tracking store; null is an SQLite file in the output folder."""


class EvaluationSection(Section):
    """How a policy is judged."""

    num_episodes: Count = 32
    """Episodes that the reported return is averaged over."""
    video: bool = False
    """Whether a video of the policy is recorded."""
    video_length_s: Positive = 10.0
    """Length of the video, in simulated seconds."""
    video_worlds: Annotated[int, Field(ge=1, le=64)] = 1
    """Worlds in the video, as tiles of one picture."""


class CheckpointSection(Section):
    """When the run is saved and whether it continues from what is there."""

    save_every: Count = 50
    """Iterations between two checkpoints; the last iteration is always saved."""
    keep: Count = 3
    """Newest checkpoints that stay on disk."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto continues from a checkpoint if there is one, never starts afresh, must fails without one."""


class DeploymentSection(Section):
    """What the trained policy is exported to, and how the export is checked."""

    export: Literal["onnx", "none"] = "onnx"
    """Format of the exported policy."""
    opset: Annotated[int, Field(ge=18, le=23)] = 18
    """ONNX operator set of the export; the runtime knows no newer one."""
    num_check_observations: Count = 1000
    """Observations on which the export is compared with the policy."""
    tolerance: Positive = 1e-5
    """Largest absolute difference of an action that the comparison allows."""
    max_rate_per_s: Positive | None = None
    """How fast the runtime lets a target change, in its unit per second (rad/s of a joint); null: any."""


class ExperimentConfig(Section):
    """A whole experiment. Every section and every field is optional; the defaults train Ant with PPO."""

    experiment: ExperimentSection = ExperimentSection()
    """What the run is called and where it writes."""
    env: EnvSection = EnvSection()
    """The simulated worlds."""
    guards: GuardsSection = GuardsSection()
    """What is done about worlds that broke."""
    randomization: RandomizationSection = RandomizationSection()
    """What differs between the worlds of a training; evaluation runs in the nominal world."""
    network: NetworkSection = NetworkSection()
    """The policy and value networks."""
    algorithm: AlgorithmSection = AlgorithmSection()
    """The learner."""
    training: TrainingSection = TrainingSection()
    """How long to train and how often to report."""
    compute: ComputeSection = ComputeSection()
    """Which hardware to use and how much of it."""
    tracking: TrackingSection = TrackingSection()
    """Where metrics go."""
    evaluation: EvaluationSection = EvaluationSection()
    """How a policy is judged."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When the run is saved and whether it continues from what is there."""
    deployment: DeploymentSection = DeploymentSection()
    """What the trained policy is exported to."""
    distillation: DistillationSection = DistillationSection()
    """How pi-distill teaches the policy; other commands do not read it."""

    @property
    def method(self) -> str:
        """What trains the policy: the algorithm, or distillation where there are teachers."""
        return "distillation" if self.distillation.teachers else self.algorithm.name

    @property
    def batch_size(self) -> int:
        """Samples of one iteration, over all worlds."""
        return self.env.num_envs * self.algorithm.horizon

    @property
    def num_iterations(self) -> int:
        """Whole iterations that fit in training.total_steps."""
        return self.training.total_steps // self.batch_size

    @property
    def num_envs_factor(self) -> int:
        """Worlds whose batch minibatches divide come in multiples of this."""
        return self.algorithm.minibatch_size // gcd(self.algorithm.minibatch_size, self.algorithm.horizon)

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.experiment.output_dir).expanduser() / self.experiment.name

    def with_num_envs(self, num_envs: int) -> ExperimentConfig:
        """This config with so many worlds.

        Raises:
            ValidationError: other settings do not fit them.
        """
        sections = self.model_dump(mode="json")
        return ExperimentConfig.model_validate(sections | {"env": sections["env"] | {"num_envs": num_envs}})

    @model_validator(mode="after")
    def _sizes_fit(self) -> ExperimentConfig:
        if (self.network.name == "cnn") != (self.env.pixels is not None):
            raise _pixels_error(self.network.name, self.env.pixels)
        if self.env.num_envs == OPEN:
            self._some_number_fits()
        else:
            self._number_fits()
        return self

    def _some_number_fits(self) -> None:
        """There is a number of worlds to choose."""
        least, horizon = self.num_envs_factor, self.algorithm.horizon
        field, value = "algorithm.minibatch_size", self.algorithm.minibatch_size
        if least > MAX_NUM_ENVS:
            problem = f"divides no batch of {MAX_NUM_ENVS} worlds or fewer, as env.num_envs = auto needs"
            fix = f"set it to algorithm.horizon = {horizon}, or a divisor of that"
            raise cross_field_error(field=field, value=value, problem=problem, fix=fix)
        if self.training.total_steps < least * horizon:
            batch = f"{least} worlds * algorithm.horizon = {least} * {horizon} = {least * horizon}"
            raise cross_field_error(
                field="training.total_steps",
                value=self.training.total_steps,
                problem=f"must be at least one iteration, with env.num_envs = auto {batch}",
                fix=f"set it to {least * horizon} or more, or lower {field} or algorithm.horizon",
            )

    def _number_fits(self) -> None:
        num_envs, horizon = self.env.num_envs, self.algorithm.horizon
        minibatch_size = self.algorithm.minibatch_size
        batch = f"env.num_envs * algorithm.horizon = {num_envs} * {horizon} = {self.batch_size}"
        if self.batch_size % minibatch_size:
            sizes = _nearest_divisors(self.batch_size, minibatch_size)
            envs = _nearest_multiples(self.num_envs_factor, num_envs)
            raise cross_field_error(
                field="algorithm.minibatch_size",
                value=minibatch_size,
                problem=f"must divide {batch}",
                fix=f"set it to {_either(sizes)}, or env.num_envs to {_either(envs)}",
            )
        if self.training.total_steps < self.batch_size:
            raise cross_field_error(
                field="training.total_steps",
                value=self.training.total_steps,
                problem=f"must be at least one iteration, {batch}",
                fix=f"set it to {self.batch_size} or more, or lower env.num_envs or algorithm.horizon",
            )


def _pixels_error(network: str, pixels: PixelsSection | None) -> Exception:
    """Policies see pixels or vectors: a network and an env that disagree about it."""
    if pixels is None:
        problem, fix = "env.pixels = null draws nothing for it to see", "set env.pixels to {}, or this to mlp"
    else:
        problem, fix = "it cannot see env.pixels", "set it to cnn, or env.pixels to null"
    return cross_field_error(field="network.name", value=network, problem=problem, fix=fix)


def _nearest_divisors(number: int, near: int) -> list[int]:
    """The divisors of `number` next below and next above `near`, those that exist."""
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below = [d for d in divisors if d < near]
    above = [d for d in divisors if d > near]
    return below[-1:] + above[:1]


def _nearest_multiples(factor: int, near: int) -> list[int]:
    """The positive multiples of `factor` next below and next above `near`."""
    below = near // factor * factor
    return [multiple for multiple in (below, below + factor) if multiple > 0]


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values))
