"""What an experiment file may say: one frozen model a section, one docstring a field.

Field names are the file's keys; units are in the names. A value of another type is an error,
never a conversion: "64" is no integer and true is no number.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from pi_incubator.config.algorithm import AlgorithmSettings
from pi_incubator.config.algorithms.ppo import PPOSettings
from pi_incubator.config.network import NetworkSettings
from pi_incubator.config.networks.mlp import MLPSettings
from pi_incubator.config.randomization import RandomizationSection
from pi_incubator.config.section import (
    Count,
    FolderName,
    Fraction,
    Name,
    Number,
    Positive,
    Ranges,
    Seconds,
    Section,
    SmallCount,
    Threads,
    cross_field_error,
)
from pi_incubator.config.union import Union
from pi_incubator.config.without_effect import check_effects, is_default, value_of

ALGORITHMS = Union(
    "algorithm", "pi_incubator.config.algorithms", AlgorithmSettings, "ppo", keeps_common=False
)
NETWORKS = Union("network", "pi_incubator.config.networks", NetworkSettings, "mlp", keeps_common=True)
UNIONS = {"algorithm": ALGORITHMS, "network": NETWORKS}
"""The sections whose fields depend on their `name`."""

if TYPE_CHECKING:  # a type checker sees what the members share
    from pi_incubator.config.algorithm import AlgorithmSettings as AnyAlgorithm
    from pi_incubator.config.network import NetworkSettings as AnyNetwork
else:
    AnyAlgorithm, AnyNetwork = ALGORITHMS.annotation(), NETWORKS.annotation()

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

    name: FolderName = "ant_ppo"
    """Name of the run and of its folder: anything that a folder can be called."""
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
    """Robot of a task that takes any: MJCF or URDF file, menagerie:ROBOT/FILE or robot_descriptions:NAME."""
    model_root: Name | None = None
    """Folder below which the robot's meshes, textures, includes may be; null is the folder of its file."""
    limits: Ranges = Field(default_factory=dict)
    """Limits [low, high] of controls by name, in place of the robot's own or of those that it lacks."""
    keyframe: Name | Annotated[int, Field(ge=0)] | None = None
    """Pose of env.model: the name or number of a keyframe, or qpos0; null takes the first, and else qpos0."""
    mjx_impl: Literal["jax", "warp"] = "jax"
    """Implementation that the mjx backend runs on; other backends do not read it."""
    max_contacts: Count | None = None
    """Contacts that worlds have room for on average (warp, newton, mjx on Warp); null counts the scene's."""
    max_constraints: Count | None = None
    """Constraint rows that every world has room for (warp, newton, mjx on Warp); null counts the scene's."""
    episode_length_s: Seconds | None = None
    """Simulated seconds after which training cuts an episode off; null and evaluation go by the task."""
    observation_history: Annotated[int, Field(ge=1, le=1000)] = 1
    """Observations that the policy sees in one row, the last ones, oldest first."""
    task: dict[str, Number] = Field(default_factory=dict)
    """Parameters of the task (reward weights, command ranges, thresholds) that replace its defaults."""
    pixels: PixelsSection | None = None
    """Pictures as an observation, for networks that read them; null draws none, {} those of the defaults."""


class GuardsSection(Section):
    """What is done about worlds that broke, beside restarting them and masking them out of the batch."""

    max_broken_share: Fraction = 0.5
    """Stop when more than this share of the worlds broke since the last report or save; 1 never stops."""
    history_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Control steps before the break that a dump of a broken world holds."""
    max_dumps: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Most dumps of broken worlds in the run's folder, in broken/; 0 writes none."""
    energy_margin: Positive | None = 10.0
    """A world breaks where a joint has more energy than this many strokes of all motors; null: no limit."""
    max_skipped_updates: Count = 10
    """Stop after this many updates in a row that were skipped: their loss or gradient was not finite."""


class TrainingSection(Section):
    """How long to train and how often to report."""

    total_steps: Annotated[int, Field(ge=0, le=2**53)] = 3_000_000
    """Environment steps of the run, summed over all worlds; 0 to learn from a dataset alone."""
    log_every: Count = 10
    """Iterations between two reports of the metrics."""
    overlap: bool = False
    """Step the worlds while the optimizer works; PPO then collects with a policy that is one update old."""
    record: Name | None = None
    """Folder of a dataset that the steps of training are written to, made or added to; null records none."""


class DatasetSection(Section):
    """Recorded steps to learn from; `dataset=PATH` on a command line is short for `dataset.path=PATH`."""

    path: Name | None = None
    """Folder that training.record or pi-data import wrote; for algorithms that learn offline."""


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
    autocast: Literal["auto", "none", "bfloat16"] = "none"
    """Type in which the update multiplies matrices, not weights; auto: bfloat16 if it is fast, else none."""
    shards: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Groups of worlds with random numbers of their own; 0 is one a process. Equal numbers train equally."""
    launcher: Literal["none", "ray"] = "none"
    """What starts the processes of a training; none is this process alone, or torchrun; ray is a cluster."""
    num_workers: Annotated[int, Field(ge=1, le=2**16)] = 1
    """Processes that the launcher starts, each with env.num_envs worlds."""
    cpus_per_worker: Annotated[float, Field(gt=0, le=2**16)] = 1.0
    """Cores that the launcher reserves for each process."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | None = None
    """GPUs that it reserves for each, also a part of one; null is one where there are enough, else none."""
    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 3
    """How often it starts all processes again, after it has lost one, from the newest checkpoint."""
    cluster: Name | None = None
    """Address of the launcher's cluster, HOST:PORT; null is RAY_ADDRESS, or one on this machine alone."""


class TrackingSection(Section):
    """Where metrics go."""

    backend: Name = "mlflow"
    """Tracker: the name of a file in pi_incubator/tracking; none records nothing."""
    uri: Name | None = None
    """Address of the tracking store; null is an SQLite file in the output folder."""


class EvaluationSection(Section):
    """How a policy is judged."""

    num_episodes: SmallCount = 32
    """Episodes that the reported return is averaged over."""
    curve: bool = True
    """Whether the learning curve is drawn at the end."""
    video: bool = False
    """Whether a video of the policy is recorded."""
    video_length_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Length of the video, in simulated seconds."""
    video_worlds: Annotated[int, Field(ge=1, le=64)] = 1
    """Worlds in the video, as tiles of one picture."""
    every: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Iterations between two evaluations during training; 0 evaluates only at the end."""


class CheckpointSection(Section):
    """When the run is saved and whether it continues from what is there."""

    save_every: Count = 50
    """Iterations between two checkpoints; the last iteration is always saved."""
    keep: Count = 3
    """Newest checkpoints that stay on disk."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto continues from a checkpoint if there is one, never starts afresh, must fails without one."""
    from_run: Annotated[Name | None, Field(alias="from")] = None
    """Run whose policy, normalizer and, where they fit, critics a new run starts with; null: new ones."""


class DeploymentSection(Section):
    """What the trained policy is exported to, and how the export is checked."""

    export: Literal["onnx", "none"] = "onnx"
    """Format of the exported policy."""
    opset: Annotated[int, Field(ge=18, le=23)] = 18
    """ONNX operator set of the export; the runtime knows no newer one."""
    num_check_observations: SmallCount = 1000
    """Observations on which the export is compared with the policy."""
    tolerance: Positive = 1e-5
    """Largest difference of an action that the comparison allows; as a share of its range beyond ±1."""
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
    network: AnyNetwork = MLPSettings()
    """The networks of policy and critics; its fields depend on its name."""
    algorithm: AnyAlgorithm = PPOSettings()
    """What learns, and from what; its fields depend on its name."""
    training: TrainingSection = TrainingSection()
    """How long to train and how often to report."""
    dataset: DatasetSection = DatasetSection()
    """Recorded steps to learn from."""
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

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one iteration of one process, over all its worlds."""
        return self.algorithm.steps_per_iteration(self.env.num_envs)

    def num_iterations(self, world_size: int = 1) -> int:
        """Whole iterations of the run, where `world_size` processes train together."""
        return self.algorithm.num_iterations(self, world_size)

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        # Unlike Path.expanduser, it leaves the name of an unknown user as it is.
        return Path(os.path.expanduser(self.experiment.output_dir)) / self.experiment.name

    def with_num_envs(self, num_envs: int) -> ExperimentConfig:
        """This config with so many worlds.

        Raises:
            ValidationError: other settings do not fit them.
        """
        sections = self.model_dump(mode="json")
        return ExperimentConfig.model_validate(sections | {"env": sections["env"] | {"num_envs": num_envs}})

    @model_validator(mode="after")
    def _sections_fit(self) -> ExperimentConfig:
        check_effects(self)
        if self.network.reads_pixels != (self.env.pixels is not None):
            raise _pixels_error(self.network, self.env.pixels)
        if self.network.needs_batch_statistics and not self.algorithm.keeps_batch_statistics:
            raise _batch_statistics_error(self.network.name, self.algorithm.name)
        if self.network.is_world_model != self.algorithm.trains_world_model:
            raise _world_model_error(self.network, self.algorithm)
        for field in self.algorithm.unused:
            self._check_unused(field)
        self.algorithm.check(self)
        if self.env.num_envs == OPEN:
            self._some_number_fits()
        else:
            self.algorithm.check_num_envs(self)
        return self

    def _check_unused(self, field: str) -> None:
        """Refuse a setting that has no effect with this algorithm, unless it has its default."""
        if not is_default(self, field):
            problem = f"has no effect with algorithm.name = {self.algorithm.name}"
            raise cross_field_error(
                field=field, value=value_of(self, field), problem=problem, fix="remove it"
            )

    def _some_number_fits(self) -> None:
        """There is a number of worlds to choose."""
        algorithm, least = self.algorithm, self.algorithm.num_envs_multiple()
        if algorithm.reads_dataset and not self.training.total_steps:
            raise cross_field_error(
                field="env.num_envs",
                value="auto",
                problem="has nothing to choose with training.total_steps = 0: no world is stepped",
                fix="set it to 1",
            )
        if least > MAX_NUM_ENVS:
            raise cross_field_error(
                field="algorithm.minibatch_size",
                value=getattr(algorithm, "minibatch_size", None),
                problem=f"divides no batch of {MAX_NUM_ENVS} worlds or fewer, as env.num_envs = auto needs",
                fix=f"set it to algorithm.horizon = {getattr(algorithm, 'horizon', 1)}, or a divisor of that",
            )
        if self.training.total_steps < algorithm.steps_per_iteration(least):
            steps = algorithm.steps_per_iteration(least)
            worlds = algorithm.describe_iteration(least).replace("env.num_envs", f"{least} worlds")
            raise cross_field_error(
                field="training.total_steps",
                value=self.training.total_steps,
                problem=f"must be at least one iteration, with env.num_envs = auto {worlds}",
                fix=f"set it to {steps} or more, or lower what an iteration collects",
            )


def _batch_statistics_error(network: str, algorithm: str) -> Exception:
    """A network whose moments nobody would maintain."""
    algorithms = [name for name, member in ALGORITHMS.members.items() if member.keeps_batch_statistics]
    networks = [name for name, member in NETWORKS.members.items() if not member.needs_batch_statistics]
    return cross_field_error(
        field="network.name",
        value=network,
        problem=f"it is for algorithms that learn with batch normalization, which {algorithm} does not",
        fix=f"set algorithm.name to {' or '.join(algorithms)}, or this to {' or '.join(networks)}",
    )


def _world_model_error(network: NetworkSettings, algorithm: AlgorithmSettings) -> Exception:
    """A world model that nobody trains, or a network that is none for an algorithm that needs one."""
    networks = [
        name for name, member in NETWORKS.members.items() if member.is_world_model != network.is_world_model
    ]
    if algorithm.trains_world_model:
        problem = f"algorithm {algorithm.name} learns a world model, and it is none"
        fix = f"set it to {' or '.join(networks)}"
    else:
        algorithms = [name for name, member in ALGORITHMS.members.items() if member.trains_world_model]
        problem = f"it is a world model, which algorithm {algorithm.name} does not train"
        fix = f"set algorithm.name to {' or '.join(algorithms)}, or this to {' or '.join(networks)}"
    return cross_field_error(field="network.name", value=network.name, problem=problem, fix=fix)


def _pixels_error(network: NetworkSettings, pixels: PixelsSection | None) -> Exception:
    """A network and an env that disagree about whether there are pixels."""
    if own := network.pixels_error(drawn=pixels is not None):
        return own
    fitting = [
        name for name, member in NETWORKS.members.items() if member.sees_pixels == (pixels is not None)
    ]
    choice = " or ".join(fitting)
    if pixels is None:
        problem, fix = (
            "env.pixels = null draws nothing for it to see",
            f"set env.pixels to {{}}, or this to {choice}",
        )
    else:
        problem, fix = "it cannot see env.pixels", f"set it to {choice}, or env.pixels to null"
    return cross_field_error(field="network.name", value=network.name, problem=problem, fix=fix)
