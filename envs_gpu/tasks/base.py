"""What a task is: a scene, and pure torch functions of the physics state. No task names a backend.

Letters: N worlds, A actions, nu controls, D observation width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import mujoco
import torch
from torch import Tensor

from envs_gpu.interface import PolicyInterface, identity_targets, servos_of
from envs_gpu.models import Sensors
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.random import Draws, WorldRandom


class Outcome(NamedTuple):
    """What one control step was worth."""

    reward: dict[str, Tensor]
    """The reward's weighted terms, name -> `[N]`; the reward is their sum."""
    terminated: Tensor
    """`[N]` bool: the task ended here, whatever the clock says."""
    measures: dict[str, Tensor]
    """What a person wants to read beside the return, name -> `[N]` (units in the name)."""
    truncated: Tensor | None = None
    """`[N]` bool: the episode is cut short here, as by the clock, though the task would go on."""


class Episode(NamedTuple):
    """Where every world is in its episode, beside the physics."""

    step: Tensor
    """`[N]` int64 control steps since the reset; zero right after it."""
    memory: dict[str, Tensor]
    """What the task keeps from step to step (a command, the last action), name -> `[N, ...]`."""
    random: Draws
    """Numbers of this world, episode and step."""
    parameters: dict[str, Tensor]
    """The task's parameters, name -> `[N]` in the simulator's dtype; `[:, None]` beside what is `[N, D]`."""

    @staticmethod
    def first(random: WorldRandom) -> Episode:
        """Before any world has run, and without parameters: enough for `initial_state`."""
        step = torch.zeros_like(random.counter)
        return Episode(step, {}, random.draws(step), {})


class Task(ABC):
    """One task. `bind` is called once with the compiled model; everything after it is pure and batched.

    A reset calls `initial_state`, then `begin`; a step calls `outcome`, then `remember`; both then `observe`.

    The functions see the state in the simulator's dtype and must not write to it; the env casts what they
    return to float32. They are compiled, so they must not sync with the host or branch on values, and
    attributes must not change after `bind`: numbers are built in. What changes from step to step belongs into
    the memory, and what an experiment or a curriculum sets into `parameters`.
    """

    parameters: ClassVar[tuple[Parameter, ...]] = ()
    """Reward weights, command ranges and thresholds; their values are in `Episode.parameters`."""

    substeps: int
    """Physics timesteps per control step (frame skip)."""
    max_episode_steps: int
    """Control steps after which an episode is truncated."""
    observation_noise_scale: Tensor | None = None
    """`[D]` factor on the noise of each entry of the `policy` group, where a run asks for it; None is 1."""
    unsupported: ClassVar[dict[str, str]] = {}
    """Backends that cannot run this task, name -> why, in a sentence."""
    rounding_factor: ClassVar[float] = 1.0
    """How much further engines may be from the referee than with other tasks, see `envs_gpu.parity`; more
    than one only where it was measured why."""
    takes_model: ClassVar[bool] = False
    """Whether the task is for any robot: its class is then called with `model`, the path of an MJCF file."""
    source: str = ""
    """The MJCF file that the scene was read from, for errors in it; empty for a scene of the task's own."""

    @abstractmethod
    def scene(self) -> mujoco.MjSpec:
        """The world as MJCF, with a sensor for everything that the task reads beside qpos and qvel."""

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        """Look up addresses and put constants on the device."""
        self.action_low, self.action_high = torch.tensor(
            model.actuator_ctrlrange.T, dtype=torch.float32, device=device
        )
        self.sensor = Sensors(
            (model.sensor(i).name, slice(int(adr), int(adr + dim)))  # NumPy's numbers slow compiled code down
            for i, (adr, dim) in enumerate(zip(model.sensor_adr, model.sensor_dim, strict=True))
        )
        self.control_dt = model.opt.timestep * self.substeps
        self.servos = servos_of(model)

    def sensor_block(self, prefix: str, first: int = 0, stop: int | None = None) -> slice:
        """Where the sensors called `prefix...` lie, one behind the other; from number `first` to `stop`."""
        found = [where for name, where in self.sensor.items() if name.startswith(prefix)][first:stop]
        return slice(found[0].start, found[-1].stop)

    def weigh(self, terms: dict[str, Tensor], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """`terms`, name -> `[N]`, times a control step's length times their worth a second, `NAME_weight`."""
        return {
            name: (parameters[f"{name}_weight"] * self.control_dt).to(term.dtype) * term
            for name, term in terms.items()
        }

    def control(self, action: Tensor) -> Tensor:
        """Clipped `action` `[N, A]` -> simulator controls `[N, nu]`."""
        return action

    def interface(self) -> PolicyInterface:
        """What `observe` and `control` say about a robot that runs a policy of this task; after `bind`.

        A task that overrides `control` must override this too: an export checks one against the other.
        """
        return PolicyInterface(identity_targets(self.action_low, self.action_high), self.servos)

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
        """What the step under `action` `[N, A]` was worth, which led to `state`; memory is as before it."""

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        """The memory after the step that led to `state`, from the one before it; new tensors, same names."""
        return {}

    @abstractmethod
    def observe(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        """Observation groups, name -> `[N, D]`."""
