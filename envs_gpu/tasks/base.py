"""What a task is: a scene, and pure torch functions of the physics state, the same for every backend.

Letters: N worlds, A actions, nu controls, D observation width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import mujoco
import torch
from torch import Tensor

from envs_gpu.errors import EnvError
from envs_gpu.goals import Goals
from envs_gpu.interface import PolicyInterface, Targets, identity_targets, servos_of
from envs_gpu.mirror import ModelMirror
from envs_gpu.models import Sensors
from envs_gpu.observation import ObservationTerm, Read, check_groups, observe
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.random import Draws, WorldRandom


class Outcome(NamedTuple):
    """Reward and end of one control step."""

    reward: dict[str, Tensor]
    """The reward's weighted terms, name -> `[N]`; the reward is their sum."""
    terminated: Tensor
    """`[N]` bool: the task ended here, whatever the clock says."""
    measures: dict[str, Tensor]
    """Quantities to log beside the return, name -> `[N]` (units in the name)."""
    truncated: Tensor | None = None
    """`[N]` bool: the episode is cut off here, as by the time limit, though the task has not ended."""


class Episode(NamedTuple):
    """State of every world's episode beside the physics."""

    step: Tensor
    """`[N]` int64 control steps since the reset; zero right after it."""
    memory: dict[str, Tensor]
    """What the task keeps from step to step (a command, the last action), name -> `[N, ...]`."""
    random: Draws
    """Random numbers of this world, episode and step."""
    parameters: dict[str, Tensor]
    """The task's parameters, name -> `[N]` in the simulator's dtype; `[:, None]` beside what is `[N, D]`."""

    @staticmethod
    def first(random: WorldRandom) -> Episode:
        """Before the first step, without memory and parameters: enough for `initial_state`."""
        step = torch.zeros_like(random.counter)
        return Episode(step, {}, random.draws(step), {})


class Task(ABC):
    """One task. `attach` is called once with the compiled model; everything after it is pure and batched.

    A reset calls `initial_state`, then `begin`; a step calls `outcome`, then `remember`. Both then call
    `observe`.

    The functions see the state in the simulator's dtype and must not write to it; the env casts what they
    return to float32. They are compiled, so they must not sync with the host or branch on values, and
    attributes must not change after `attach`, because compiled code contains their values. What changes from
    step to step belongs in the memory, and what an experiment or a curriculum sets belongs in `parameters`.
    """

    parameters: ClassVar[tuple[Parameter, ...]] = ()
    """Reward weights, command ranges and thresholds; their values are in `Episode.parameters`."""

    substeps: int
    """Physics timesteps per control step (frame skip)."""
    max_episode_steps: int
    """Control steps after which an episode is truncated."""
    observation_groups: dict[str, tuple[ObservationTerm, ...]]
    """What `observation` declared; set by `attach`."""
    unsupported: ClassVar[dict[str, str]] = {}
    """Backends that cannot run this task, name -> why, in a sentence."""
    rounding_factor: ClassVar[float] = 1.0
    """Factor on how far engines may be from the referee, see `envs_gpu.parity`; above one only with a
    measured reason."""
    is_symmetric: ClassVar[bool] = False
    """Whether the task is the same in the left-right mirror image of its world: rewards and ends are the same
    there, actions are mirrored as controls are, and each observation term says how it is."""
    mirror: ModelMirror | None = None
    """Of a symmetric task, set by `bind`; None of another."""
    start_act: tuple[float, ...] = ()
    """`[na]` activations with which every episode starts; empty is zeros. Set by `bind`."""
    uniform_positions: tuple[int, ...] = ()
    """Addresses in `qpos` of slides along which the world is the same everywhere, so that the dynamics do not
    depend on them: for learned models. A free joint needs no declaration. Set by `bind`."""
    takes_model: ClassVar[bool] = False
    """Whether the task is for any robot: its class is called with `model`, a `UserModel` or its name, and
    `keyframe`, the name or number of its pose or None."""
    source: str = ""
    """The MJCF file that the scene was read from, for errors in it; empty where the task builds the scene."""
    notes: tuple[str, ...] = ()
    """What the scene has that its file does not, such as inferred limits: lines for the start of a run."""

    @abstractmethod
    def scene(self) -> mujoco.MjSpec:
        """The world as MJCF, with a sensor for everything that the task reads beside qpos and qvel."""

    def attach(self, model: mujoco.MjModel, device: torch.device) -> None:
        """Prepare the task for the compiled `model`: `bind`, then collect the observation terms.

        Raises:
            EnvError: the terms contradict each other, or there is no group `policy`.
        """
        self.bind(model, device)
        self.observation_groups = self.observation()
        check_groups(self.observation_groups)
        if "policy" not in self.observation_groups and type(self).observe is Task.observe:
            problem = f"{type(self).__name__} declares no observation group 'policy'"
            raise EnvError(f"{problem}; return one from observation()")

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        """Look up addresses and put constants on the device; an override begins with `super().bind`."""
        self.action_low, self.action_high = torch.tensor(
            model.actuator_ctrlrange.T, dtype=torch.float32, device=device
        )
        self.sensor = Sensors(
            (model.sensor(i).name, slice(int(adr), int(adr + dim)))  # NumPy's numbers slow compiled code down
            for i, (adr, dim) in enumerate(zip(model.sensor_adr, model.sensor_dim, strict=True))
        )
        self.control_dt = model.opt.timestep * self.substeps
        self.servos = servos_of(model)
        self.mirror = ModelMirror(model) if self.is_symmetric else None

    def sensor_reading(self, name: str) -> Read:
        """Reads all values `[N, dim]` of a sensor.

        Raises:
            ModelError: the scene has no sensor of this name.
        """
        where = self.sensor[name]
        return lambda state, _: state.sensordata[:, where]

    def sensor_block(self, prefix: str, first: int = 0, stop: int | None = None) -> slice:
        """Part of `sensordata` with the consecutive sensors called `prefix...`, numbers `first` to `stop`."""
        found = [where for name, where in self.sensor.items() if name.startswith(prefix)][first:stop]
        return slice(found[0].start, found[-1].stop)

    def weigh(self, terms: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`terms`, name -> `[N]`, times the length of a control step, times the parameter `NAME_weight`."""
        return {
            name: (parameters[f"{name}_weight"] * self.control_dt).to(term.dtype) * term
            for name, term in terms.items()
        }

    def control(self, action: Tensor) -> Tensor:
        """Clipped `action` `[N, A]` -> simulator controls `[N, nu]`."""
        return action

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        """Observation groups, name -> terms in order; called once, after `bind`.

        `policy` is what a robot can measure; only this group gets noise. Other groups, such as `critic`, may
        contain the same terms and privileged ones.
        """
        return {}

    def goals(self) -> Goals | None:
        """What of the task depends on its goal, for hindsight experience replay; None has no goals."""
        return None

    def targets(self) -> Targets:
        """How an action becomes a target. It must do what `control` does: override both or neither."""
        return identity_targets(self.action_low, self.action_high)

    def interface(self) -> PolicyInterface:
        """What a robot that runs a policy of this task measures and is sent: terms, targets and servos."""
        terms = self.observation_groups.get("policy", ())
        commands = tuple(name for term in terms for name in term.commands)
        return PolicyInterface(
            self.targets(), self.servos, tuple(term.described() for term in terms), commands
        )

    @abstractmethod
    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Draw `qpos` `[N, nq]` and `qvel` `[N, nv]` for the start of an episode.

        `episode` holds the memory that the last episode left (empty before the first one), for curricula.
        Before the first one it may lack the parameters too (see `Episode.first`): read none of them then.
        """

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        """The memory at the start of an episode, from its first `state`; `episode` as in `initial_state`."""
        return {}

    @abstractmethod
    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        """Reward and end of the step under `action` `[N, A]` that led to `state`; memory is as before it."""

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        """The memory after the step that led to `state`, from the one before it; new tensors, same names."""
        return {}

    def observe(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        """Observation groups without noise, name -> `[N, D]`.

        Override it only for an observation that cannot be cut into terms, and leave `observation` empty then.
        """
        return observe(self.observation_groups, state, episode)
