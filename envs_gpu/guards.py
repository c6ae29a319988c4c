"""Guards: a world whose simulation blew up is found, its last moments are kept, and too many stop the run.

A world is broken by a control step if its action, reward or observation is not finite, or if a position or
velocity cannot be that of this robot (see `envs_gpu.limits`). `SimEnv` restarts such a world alone, and a
learner leaves the step out.

Everything on the way there has fixed shapes and stays on the device. Only `look` and `check` wait for it.

Letters: N worlds, K control steps of history, A actions, D observation width.
"""

from __future__ import annotations

import enum
import functools
import logging
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from envs_gpu.dump import Dump, Scene, below, write_dump
from envs_gpu.errors import BrokenWorldsError
from envs_gpu.limits import Limits
from envs_gpu.physics._capacity import Overflow
from envs_gpu.physics.base import PhysicsState

if TYPE_CHECKING:
    from envs_gpu.physics.base import Physics

log = logging.getLogger(__name__)

RECORDED = ("qpos", "qvel", "act", "time", "ctrl")
"""What a control step of one world is made of."""


class Cause(enum.IntFlag):
    """What was not finite, or beyond what the robot can reach."""

    ACTION = 1
    """The policy's, or the controls that the task made of it."""
    STATE = 2
    REWARD = 4
    OBSERVATION = 8


@dataclass(frozen=True)
class GuardOptions:
    """What is done about broken worlds beside restarting and counting them."""

    history_steps: int = 10
    """K, the control steps that a dump holds."""
    max_broken_share: float = 0.5
    """`check` raises when more than this share of the worlds broke at least once since it last looked."""
    dump_dir: Path | None = None
    """Folder for dumps; None writes none and keeps no history."""
    max_dumps: int = 10
    """Most dumps in that folder."""
    energy_margin: float | None = 10.0
    """How many times the energy of one stroke of all actuators a robot can have; see `limits.reachable`."""


def causes(
    action: Tensor, state: PhysicsState, reward: Tensor, observation: dict[str, Tensor], limits: Limits
) -> Tensor:
    """`[N]` uint8 bits of `Cause`, zero where a world is well.

    Args:
        action: `[N, A]` as the policy gave it; clipping would hide that it was infinite.
        state: after the step; its controls are those of the step.
        reward: `[N]`.
        observation: groups `[N, ...]`.
        limits: of the model, on the state's device.
    """
    infinite = math.inf
    possible = (state.qpos > limits.qpos_low) & (state.qpos < limits.qpos_high)  # of NaN both are false
    holds = (  # in the order of `Cause`
        _below_limit(action, infinite) & _below_limit(state.ctrl, infinite),
        possible.all(1) & (state.qvel.abs() < limits.speed).all(1),
        reward.isfinite(),
        functools.reduce(torch.logical_and, [_below_limit(x, infinite) for x in observation.values()]),
    )
    bits = 1 << torch.arange(len(holds), dtype=torch.uint8, device=reward.device)  # [4]
    return (~torch.stack(holds) * bits[:, None]).sum(0, dtype=torch.uint8)


class BrokenShare:
    """Which worlds broke since somebody last looked, and whether these are too many."""

    def __init__(self, num_envs: int, device: torch.device, limit: float) -> None:
        self.limit = limit
        self._causes = torch.zeros(num_envs, dtype=torch.uint8, device=device)

    def add(self, causes: Tensor) -> None:
        """Remember `[N]` bits of `Cause`."""
        self._causes |= causes

    def clear(self) -> None:
        """Forget what was remembered."""
        self._causes.zero_()

    def check(self, dump: Path | None = None) -> None:
        """Forget what was remembered; one host sync.

        Raises:
            BrokenWorldsError: more than the share `limit` of the worlds broke; it names `dump`.
        """
        seen = self._causes.tolist()
        self._causes.zero_()
        num_broken = sum(map(bool, seen))
        if num_broken <= self.limit * len(seen):
            return
        bits = functools.reduce(operator.or_, seen)
        replay = f"`pi-envs replay {dump}` shows when; " if dump else ""
        raise BrokenWorldsError(
            f"{num_broken} of {len(seen)} worlds ({num_broken / len(seen):.0%}) broke since the last look, "
            f"more than guards.max_broken_share = {self.limit}: not finite, or impossible for this robot, "
            f"was their {name_causes(bits)}; {replay}{_advice(bits)}"
        )


class Guards:
    """Watches N worlds step; one object an env.

    Args:
        options: see `GuardOptions`.
        physics: whose states are recorded.
        scene: what a dump says about where the states come from.
    """

    def __init__(self, options: GuardOptions, physics: Physics, scene: Scene) -> None:
        self.options, self.scene = options, scene
        self.step = 0  # control steps since the env was made
        self._first_step = 0  # of those that the history still holds
        self._share = BrokenShare(physics.num_worlds, physics.device, options.max_broken_share)
        self._last_dump: Path | None = None
        self._physics = physics
        self._history: _History | None = None
        if options.dump_dir is not None and self._num_dumps() < options.max_dumps:
            self._history = _History(physics, options.history_steps)

    def remember(self, ctrl: Tensor) -> None:
        """Record the state that the control step under `ctrl` `[N, nu]` starts from."""
        if self._history:
            self._history.write(self.step, self._physics.state._replace(ctrl=ctrl))
        self.step += 1

    def isolate(self, causes: Tensor, episode_step: Tensor) -> None:
        """Note who broke, before they are restarted; the first one's history is kept until `look`.

        Args:
            causes: `[N]` bits of `Cause`.
            episode_step: `[N]` control steps of the running episode, the last one included.
        """
        self._share.add(causes)
        # Looking is free on the CPU; on a GPU it would stall the stream.
        if self._history and (causes.device.type != "cpu" or causes.any()):
            recorded = episode_step.clamp(max=self.step - self._first_step)
            self._history.keep(causes, recorded, self.step, self._physics)

    def forget(self) -> None:
        """Start again: the env was reset or loaded."""
        self.cut()
        self._share.clear()

    def cut(self) -> None:
        """The recorded states do not lead to the present ones any more, so no dump goes further back."""
        self._first_step = self.step

    def look(self) -> None:
        """Write the world that was kept, if there is one, to a file; one host sync."""
        if not self._history or (kept := self._history.release()) is None:
            return
        assert self.options.dump_dir is not None
        try:
            path = write_dump(self.options.dump_dir, self.scene, kept)
        except (OSError, ValueError) as error:
            # A run is worth more than its dumps.
            log.warning("no dumps of broken worlds: %s", error)
            self._history = None
            return
        self._last_dump = path
        what = name_causes(kept.causes)
        log.warning("world %d broke (its %s); `pi-envs replay %s` shows when", kept.world, what, path)
        if self._num_dumps() >= self.options.max_dumps:
            log.warning("%d dumps are enough (guards.max_dumps)", self.options.max_dumps)
            self._history = None

    def check(self) -> None:
        """`look`, and stop where too many worlds broke.

        Raises:
            BrokenWorldsError: see `GuardOptions.max_broken_share`.
        """
        self.look()
        self._share.check(self._last_dump)

    def _num_dumps(self) -> int:
        folder = self.options.dump_dir
        return len(list(folder.glob("broken_*.npz"))) if folder else 0


class OverflowWatch:
    """Counts the worlds in which contacts or constraints found no room, and says once what to raise."""

    def __init__(self, physics: Physics) -> None:
        self._physics = physics
        self._reported: set[Overflow] = set()

    def pop(self) -> dict[str, float]:
        """`physics/overflow`, how many worlds did since the last call; nothing where none can. One sync."""
        if self._physics.room is None:
            return {}
        worlds = self._physics.overflow_bits().tolist()
        self._physics.clear_overflow()
        for kind in Overflow:
            count = sum(bool(bits & kind) for bits in worlds)
            if count and kind not in self._reported:
                self._reported.add(kind)
                log.warning("%s", self._explain(kind, count))
        return {"physics/overflow": float(sum(map(bool, worlds)))}

    def _explain(self, kind: Overflow, count: int) -> str:
        lost = f"{count} of {self._physics.num_worlds} worlds lost"
        room = self._physics.room
        assert room is not None
        if kind is Overflow.CONTACTS:
            return f"{lost} contacts, their physics is wrong: raise env.max_contacts above {room.contacts}"
        if kind is Overflow.CONSTRAINTS:
            rows = room.constraints
            return f"{lost} constraints, their physics is wrong: raise env.max_constraints above {rows}"
        return (
            f"{lost} contacts to a buffer of fixed size in MuJoCo Warp: use fewer or simpler colliding geoms"
        )


class _History:
    """The last K states of every world in a ring, and one world taken out of it when it broke."""

    def __init__(self, physics: Physics, num_steps: int) -> None:
        self.num_steps = num_steps
        state = physics.state._asdict()
        ring = {name: state[name].new_zeros(num_steps, *state[name].shape) for name in RECORDED}
        self._ring = {name: value for name, value in ring.items() if value.numel()}  # [K, N, ...]
        # Indexing costs more than copying: the views are made once.
        self._rows = [{name: value[k] for name, value in self._ring.items()} for k in range(num_steps)]
        self._kept: dict[str, Tensor] = {}
        self._is_full = torch.zeros((), dtype=torch.bool, device=physics.device)

    def write(self, step: int, state: PhysicsState) -> None:
        """Record the `state` that control step number `step` starts from."""
        for name, row in self._rows[step % self.num_steps].items():
            row.copy_(getattr(state, name))

    def keep(self, causes: Tensor, recorded: Tensor, step: int, physics: Physics) -> None:
        """Take the first broken world out of the ring, unless one is kept already.

        Args:
            causes: `[N]` bits of `Cause`.
            recorded: `[N]` how many of the last control steps belong to the running episode.
            step: control steps until now.
            physics: after the step, before any restart.
        """
        broken = causes != 0
        takes = broken.any() & ~self._is_full
        world = broken.to(torch.uint8).argmax().unsqueeze(0)  # [1]
        found = {f"before.{name}": value.index_select(1, world)[:, 0] for name, value in self._ring.items()}
        state = physics.state._asdict()
        found |= {f"after.{name}": state[name].index_select(0, world)[0] for name in self._ring}
        fields = physics.world_fields().items()
        found |= {f"model.{name}": value.index_select(0, world)[0] for name, value in fields}
        found["world"] = world[0]
        found["causes"] = causes.index_select(0, world)[0]
        found["recorded"] = recorded.index_select(0, world)[0]
        found["step"] = torch.full_like(world[0], step)
        self._kept = {
            name: torch.where(takes, value, self._kept.get(name, value)) for name, value in found.items()
        }
        self._is_full |= takes

    def release(self) -> Dump | None:
        """The kept world, on the host, oldest step first; makes room for the next one."""
        if not self._kept or not self._is_full.item():
            return None
        self._is_full.zero_()
        kept = {name: value.cpu() for name, value in self._kept.items()}
        world, bits, recorded, step = (
            int(kept.pop(name)) for name in ("world", "causes", "recorded", "step")
        )
        order = [s % self.num_steps for s in range(step - min(recorded, self.num_steps), step)]
        return Dump(
            step=step,
            world=world,
            causes=bits,
            before={name: value[order].numpy() for name, value in below(kept, "before.").items()},
            after={name: value.numpy() for name, value in below(kept, "after.").items()},
            fields={name: value.numpy() for name, value in below(kept, "model.").items()},
        )


def name_causes(bits: int) -> str:
    """The names of the `Cause` bits that are set."""
    return " and ".join(str(cause.name).lower() for cause in Cause if cause & bits)


def _below_limit(values: Tensor, limit: float) -> Tensor:
    """`[N, ...]` -> `[N]` bool: every size is below `limit`, which that of NaN is not."""
    return values.abs().flatten(1).amax(1) < limit


def _advice(bits: int) -> str:
    if bits & Cause.ACTION:
        return (
            "the policy diverged: lower algorithm.lr or algorithm.max_grad_norm in a run with another "
            "experiment.name, which checkpoint.from lets start with the weights of this one"
        )
    advice = "try a smaller timestep, weaker actuators, or smaller randomization"
    # What is not finite shows in the observation too; this state was only beyond the limits.
    limit = "; if it may be that fast, raise guards.energy_margin"
    return advice + (limit if bits == Cause.STATE else "")
