"""The env contract: what a trainer may expect from any batch of worlds.

Letters: N worlds, A actions, D observation width of one group. Everything is batch first, torch only, and
on `env.device`.

    reset(seed)          -> obs          TensorDict of groups, each `[N, D]` float32: `policy`, and `critic`
                                         where the critic sees more than the policy; and `pixels`
                                         `[N, C, H, W]` uint8 where the worlds are drawn
    step(action [N, A])  -> StepResult   obs           after auto-reset: what the policy acts on next
                                         reward        `[N]` float32
                                         terminated    `[N]` bool, the task ended: nothing to bootstrap
                                         truncated     `[N]` bool, only the time is up: bootstrap `final_obs`
                                         final_obs     the last observation of the episode, before any reset
                                         metrics       name -> `[N]`, reward terms and measures of the task
                                         broken        `[N]` bool, the simulation blew up: see below
    obs                  -> obs          the observation that `reset` or `step` gave last

`done = terminated | truncated` cuts the trace. Worlds that are done are reset inside the step, by mask, on
the device: no host sync on CUDA, no Python loop over worlds. Actions are in task units and are clipped to
`spec.action_low/high`. One world's trajectory depends on neither N, nor its index, nor its neighbours.

A world is `broken` by a step if its action, reward or observation is not finite, or its state is impossible
for the robot. Its episode ends there (`terminated`, never `truncated`), and the world is reset. Reward and
`final_obs` of that step are zero, and a learner leaves the step out; the earlier steps of the episode count.

Where `spec.num_choices` is K, actions are discrete: A is 1, and the action is the number of a choice, float32
from 0 to K - 1.

Tensors that `reset` and `step` return are the env's own buffers: valid until the next call, clone to keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.errors import EnvError
from envs_gpu.goals import ObservedGoals
from envs_gpu.interface import PolicyInterface, Servo, Term, identity_targets
from envs_gpu.mirror import EnvMirror
from envs_gpu.parameters import unknown_parameter

if TYPE_CHECKING:
    from envs_gpu.imagination import Imagination


class ObservedTerm(NamedTuple):
    """A part of an observation group that is a vector."""

    name: str
    width: int
    grid: tuple[int, int] | None = None
    """Rows and columns where the entries are a grid, row by row; None where they are not."""


@dataclass(frozen=True)
class EnvSpec:
    """What the world looks like from outside: enough to build networks, buffers and an exported policy."""

    name: str
    """The task's name in the registry."""
    num_envs: int
    """N, the number of worlds."""
    obs_dims: dict[str, int]
    """Width D of every observation group that is a vector."""
    action_dim: int
    """A."""
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    """Limits of the action, one number each; the env clips to them."""
    joint_names: tuple[str, ...]
    """The actuated joints, in the order of the action."""
    control_hz: float
    """Actions per simulated second."""
    max_episode_steps: int
    """Control steps after which an episode is truncated."""
    device: torch.device
    pixels_shape: tuple[int, int, int] | None = None
    """Channels, height and width of the group `pixels`; None where nothing is drawn."""
    num_choices: int | None = None
    """Where the action is the number of a choice, `[N, 1]` of 0, 1, ...: how many there are. None where
    actions are continuous."""
    terms: dict[str, tuple[ObservedTerm, ...]] = field(default_factory=dict)
    """Observation group -> the terms of one observation in order, where the task says so. A group with a
    history has several observations, oldest first."""

    def obs_shape(self, group: str) -> tuple[int, ...]:
        """Shape of one world's observation in `group`: `(D,)`, or `(C, H, W)` for pixels."""
        if group == "pixels" and self.pixels_shape:
            return self.pixels_shape
        return (self.obs_dims[group],)

    def obs_dtype(self, group: str) -> torch.dtype:
        """uint8 for pixels, else float32."""
        return torch.uint8 if group == "pixels" else torch.float32

    @property
    def episode_length_s(self) -> float:
        """Simulated seconds after which an episode is truncated."""
        return self.max_episode_steps / self.control_hz


class StepResult(NamedTuple):
    """What one control step gave; shapes as in the module's docstring."""

    obs: TensorDict
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: TensorDict
    metrics: dict[str, Tensor]
    broken: Tensor


class VecEnv(ABC):
    """A batch of worlds that keeps the contract in the module's docstring."""

    spec: EnvSpec
    obs: TensorDict
    notes: tuple[str, ...] = ()
    """How the worlds differ from the robot's file, such as inferred limits: lines for the start of a run."""
    can_copy_worlds: ClassVar[bool] = False
    """Whether there is `copy_worlds`."""

    def scene_hashes(self) -> dict[str, str]:
        """Field of the compiled MuJoCo model -> hash of its values; empty where the env has no such model."""
        return {}

    @abstractmethod
    def reset(self, seed: int) -> TensorDict:
        """Start every world anew; the same seed gives the same worlds bit for bit."""

    @abstractmethod
    def step(self, action: Tensor) -> StepResult:
        """Advance every world by one control step under `action` `[N, A]`."""

    @abstractmethod
    def pop_metrics(self) -> dict[str, float]:
        """Means over what happened since the last call (`episode/...`, `reward/...`): one host sync."""

    def check(self) -> None:
        """Stop where too many worlds broke since the last check: one host sync.

        Ask before anything is saved that was learned from them, such as a checkpoint.

        Raises:
            BrokenWorldsError: more than the allowed share did.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a bit-exact continuation needs: physics, random numbers, counters, parameters."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict`; the next `step` gives what it would have given then."""

    def copy_worlds(self, source: Tensor) -> None:
        """Make world i a copy of world `source[i]`, in the middle of its episode.

        Everything that a world is gets copied: physics, task state, observations, randomization, time and
        return of the episode, and its random numbers. So copies that get the same actions stay equal bit for
        bit, and equal to their source, also over a reset. Call it between steps.

        Args:
            source: `[N]` int64, on the env's device.

        Raises:
            EnvError: the worlds of this env cannot be copied.
        """
        raise EnvError(f"the worlds of {self.spec.name} cannot be copied; check can_copy_worlds before")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The task's parameters, name -> `[N]`: views to read; `set_parameters` writes them."""
        return {}

    def set_parameters(self, mask: Tensor | None, values: Mapping[str, float | Tensor]) -> None:
        """Set task parameters in the worlds where `mask` `[N]` is true; it counts from the next step on.

        Call it between steps. What an episode drew before, such as a command, stays until it is drawn again.

        Args:
            mask: bool; None is all worlds.
            values: name -> a number, or a tensor `[]` or `[N]`. Nothing is written if one of them is wrong.

        Raises:
            SettingError: an unknown name, no number, a wrong shape, or out of range.
            ValueError: `mask` is not `[N]` bool.
        """
        for name, value in values.items():
            raise unknown_parameter(self.spec.name, name, value, {})

    @property
    def drawn_model(self) -> Any:
        """The MuJoCo model (`mujoco.MjModel`) by which a world is drawn; None where there is none."""
        return None

    @property
    def draws_itself(self) -> bool:
        """Whether the env has a renderer of its own, which `pictures` uses; needed without `drawn_model`."""
        return False

    def pictures(self, num_worlds: int) -> list[NDArray[np.uint8]]:
        """Pictures of the first worlds, each `[H, W, 3]` red, green, blue; for envs with `draws_itself`.

        Raises:
            EnvError: this env has no renderer of its own.
            RenderError: the renderer does not work on this machine.
        """
        raise EnvError(f"{self.spec.name} has no renderer of its own; check draws_itself before")

    def interface(self) -> PolicyInterface:
        """What a robot that runs a policy of this env measures, and how it is told what to do.

        Raises:
            EnvError: what the task says of it is not what the task does.
        """
        low, high = torch.tensor(self.spec.action_low), torch.tensor(self.spec.action_high)
        return PolicyInterface(
            identity_targets(low, high),
            tuple(Servo(joint) for joint in self.spec.joint_names),
            (Term("observation", self.spec.obs_dims["policy"]),),
        )

    def mirror(self, groups: Iterable[str]) -> EnvMirror:
        """The left-right mirror of actions and of observation `groups`.

        Raises:
            EnvError: the env declares none, or none of one of the groups.
        """
        raise EnvError(f"{self.spec.name} declares no mirror")

    def goals(self, groups: Collection[str]) -> ObservedGoals | None:
        """The goals in observation groups, for hindsight experience replay; None where there are no goals.

        Raises:
            EnvError: the groups do not hold what the task declares as its goal.
        """
        return None

    def imagination(self) -> Imagination:
        """The task's functions on predicted states; observations have the group `physics` from now on.

        Call it before the first step.

        Raises:
            EnvError: the env has no physics state, reads what nobody predicts, or is not differentiable.
        """
        raise EnvError(f"{self.spec.name} has no physics state that a learned model could predict")

    def positions(self) -> Tensor:
        """Where every world is now, `[N, nq]` of `drawn_model`; the env's own memory.

        Raises:
            NotImplementedError: the env has no `drawn_model`, so nobody asks where its worlds are.
        """
        raise NotImplementedError(f"{self.spec.name} has no positions")

    def close(self) -> None:
        """Release threads and device memory."""

    @property
    def device(self) -> torch.device:
        return self.spec.device

    @property
    def num_envs(self) -> int:
        return self.spec.num_envs
