"""Does a task keep its promises on a backend? One pair of the two, check by check, on the CPU.

Every check is a function of a `Pair` that returns what it found, or raises `CheckFailedError` with what is
wrong. All of a pair's checks share one env, so that its kernels are built once.

    python -m envs_gpu.check TASK BACKEND      prints one event a line as JSON: a check begins, a finding

Letters: N worlds, T steps, A actions, D observation width.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor

from envs_gpu.make import make_env
from envs_gpu.parity import drift_of, judge
from envs_gpu.sim_env import SimEnv
from envs_gpu.tasks import TASKS

CPU = torch.device("cpu")
NUM_WORLDS = {"mujoco": 16, "warp": 16, "newton": 16, "mjx": 4}
"""mjx is 50 times slower than C on a CPU: few worlds."""
SHORT_STEPS, LONG_STEPS, DRIFT_STEPS = 30, 1000, 40
SEED = 7

Status = Literal["ok", "failed", "named", "skipped"]
"""`named`: further from the referee than rounding accounts for, as `envs_gpu.parity` knows; `skipped`: not
promised, and the detail says why."""
Played = dict[str, Tensor]


class CheckFailedError(Exception):
    """What is wrong, in one line."""


@dataclass(frozen=True)
class Finding:
    """How a check went."""

    check: str
    status: Status
    detail: str
    wall_s: float = 0.0


class Pair:
    """One task on one backend.

    Args:
        task: the task's name.
        backend: the backend's name.
        num_worlds: N; None takes what suits the backend.
    """

    def __init__(self, task: str, backend: str, num_worlds: int | None = None) -> None:
        self.task, self.backend = task, backend
        self.num_worlds = num_worlds or NUM_WORLDS.get(backend, 4)
        self.num_overflows: float | None = None
        """Worlds in which something found no room in the long run; None until it has been."""

    @cached_property
    def env(self) -> SimEnv:
        """The worlds that all checks share."""
        return self.make(self.num_worlds)

    def make(self, num_worlds: int, seed: int = SEED) -> SimEnv:
        """Other worlds of the pair."""
        env = make_env(self.task, backend=self.backend, num_envs=num_worlds, device=CPU, seed=seed)
        return cast(SimEnv, env)

    def actions(self, num_steps: int, seed: int = 0) -> Tensor:
        """Uniform actions `[T, N, A]`."""
        low, high = (torch.tensor(limit) for limit in (self.env.spec.action_low, self.env.spec.action_high))
        generator = torch.Generator().manual_seed(seed)
        return torch.lerp(low, high, torch.rand(num_steps, self.num_worlds, len(low), generator=generator))


def unsupported(task: str, backend: str) -> str | None:
    """Why the task says that it does not run on this backend; None where it does."""
    reason: str | None = TASKS.get(task).unsupported.get(backend)
    return reason


def check_pair(pair: Pair, begins: Callable[[str], None] = lambda name: None) -> Iterator[Finding]:
    """The findings of all checks, one after the other; `begins` hears each check's name before it runs."""
    for name, check in CHECKS.items():
        begins(name)
        began_s = time.perf_counter()
        status: Status
        try:
            status, detail = check(pair)
        except CheckFailedError as problem:
            status, detail = "failed", str(problem)
        # Whatever a task or a backend raises is a finding, and the other checks go on.
        except Exception as error:
            status, detail = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Finding(name, status, detail, round(time.perf_counter() - began_s, 2))


def check_spec(pair: Pair) -> tuple[Status, str]:
    """Shapes, dtypes and limits are what the spec says, and actions beyond the limits are clipped."""
    env, spec, num_worlds = pair.env, pair.env.spec, pair.num_worlds
    env.reset(SEED)
    action = pair.actions(1)[0]
    result = env.step(action)
    widths = {group: (num_worlds, width) for group, width in spec.obs_dims.items()}
    for name, obs in (("env.obs", env.obs), ("obs", result.obs), ("final_obs", result.final_obs)):
        _require_equal(
            f"shapes of {name}", {group: tuple(value.shape) for group, value in obs.items()}, widths
        )
        for group, value in obs.items():
            _require_equal(f"dtype of {name}[{group!r}]", value.dtype, torch.float32)
    flags = {"reward": torch.float32, "terminated": torch.bool, "truncated": torch.bool}
    for name, dtype in flags.items():
        value = getattr(result, name)
        _require_equal(name, (tuple(value.shape), value.dtype), ((num_worlds,), dtype))
    _require("policy" in spec.obs_dims, "no observation group `policy`")
    for name in ("action_low", "action_high", "joint_names"):
        _require_equal(f"length of spec.{name}", len(getattr(spec, name)), spec.action_dim)
    limits = zip(spec.action_low, spec.action_high, strict=True)
    _require(all(low < high for low, high in limits), "an action's lower limit is not below its upper one")
    _require(spec.control_hz > 0 and spec.max_episode_steps > 0, "no control rate or no episode length")
    most = torch.tensor(spec.action_high).expand_as(action)
    played = []
    for chosen in (most, most + 100.0):
        env.reset(SEED)
        played.append(play(env, chosen[None]))
    require_same(played[0], played[1], "an action beyond its limit does not act like the limit")
    return "ok", f"{spec.obs_dims}, {spec.action_dim} actions at {spec.control_hz:g} Hz"


def check_same_seed(pair: Pair) -> tuple[Status, str]:
    """One seed gives one trajectory, bit for bit; another seed another start."""
    env, moves, played = pair.env, pair.actions(SHORT_STEPS), []
    for _ in range(2):
        start = {name: value.clone() for name, value in env.reset(SEED).items()}
        played.append(play(env, moves))
    require_same(played[0], played[1], "the same seed gave another trajectory")
    other = env.reset(SEED + 1)
    differs = any(not torch.equal(value, other[name]) for name, value in start.items())
    _require(differs, "another seed gave the same start")
    return "ok", f"{SHORT_STEPS} steps, bit for bit"


def check_alone(pair: Pair) -> tuple[Status, str]:
    """World 0 does the same without the others, bit for bit, where the backend promises it."""
    env = pair.env
    if reason := env.physics.number_matters:
        return "skipped", f"not promised: {reason}"
    moves = pair.actions(SHORT_STEPS)
    env.reset(SEED)
    crowd = play(env, moves)
    alone = pair.make(1)
    require_same(
        {name: value[:, :1] for name, value in crowd.items()},
        play(alone, moves[:, :1]),
        f"N=1 differs from world 0 of N={pair.num_worlds}",
    )
    alone.close()
    return "ok", f"N=1 equals world 0 of N={pair.num_worlds}"


def check_permuted(pair: Pair) -> tuple[Status, str]:
    """Worlds that change places, with all that belongs to them, do there what they did before."""
    env, moves = pair.env, pair.actions(SHORT_STEPS)
    env.reset(SEED)
    play(env, moves[:5])
    order = torch.arange(pair.num_worlds).roll(1)
    state = env.state_dict()
    straight = play(env, moves[5:])
    num_worlds = pair.num_worlds
    turn = {name: value[order] if len(value) == num_worlds else value for name, value in state.items()}
    env.load_state_dict(turn)
    turned = play(env, moves[5:, order])
    expected = {name: value[:, order] for name, value in straight.items()}
    require_same(expected, turned, "permuting the worlds does not permute the results")
    return "ok", f"{pair.num_worlds} worlds"


def check_final_obs(pair: Pair) -> tuple[Status, str]:
    """At an episode's end `final_obs` is what the world would have seen had it gone on, and `obs` a start."""
    env, action = pair.env, pair.actions(1)[0]
    env.reset(SEED)
    state, last_step = env.state_dict(), env.spec.max_episode_steps - 1
    late = state | {"episode_step": torch.full_like(state["episode_step"], last_step)}
    env.load_state_dict(late)
    ended = play(env, action[None])
    _require(bool((ended["truncated"] | ended["terminated"]).all()), "the time limit ends no episode")
    _require(not env.state_dict()["episode_step"].any(), "a world was not reset at the end of its episode")
    env.load_state_dict(late)
    with _longer_episodes(env):
        going_on = play(env, action[None])
    lives = ~going_on["terminated"][0]
    _require(bool(lives.any()), "every world terminates in its first step: nothing to compare")
    groups = env.spec.obs_dims
    require_same(
        {group: going_on[f"obs.{group}"][:, lives] for group in groups},
        {group: ended[f"final_obs.{group}"][:, lives] for group in groups},
        "final_obs is not the observation before the reset",
    )
    same = (ended["obs.policy"] == ended["final_obs.policy"]).all(-1)
    _require(not bool(same.any()), "a world sees after the reset what it saw before it")
    return "ok", f"{int(lives.sum())} worlds"


def check_long_run(pair: Pair) -> tuple[Status, str]:
    """1,000 steps of random actions: everything is finite, and no simulation blew up."""
    env = pair.env
    env.reset(SEED)
    env.pop_metrics()
    for step, action in enumerate(pair.actions(LONG_STEPS)):
        result = env.step(action)
        values = {"reward": result.reward, **result.metrics}
        values |= {f"obs[{group}]": value for group, value in result.obs.items()}
        values |= {f"final_obs[{group}]": value for group, value in result.final_obs.items()}
        for name, value in values.items():
            _require(bool(value.isfinite().all()), f"{name} is not finite in step {step + 1}")
        broken = result.metrics["physics/broken"].nonzero().flatten().tolist()
        _require(not broken, f"the simulation of world {broken[:1]} blew up in step {step + 1}")
    metrics = env.pop_metrics()
    pair.num_overflows = metrics.get("physics/overflow")
    return "ok", f"{pair.num_worlds} worlds, {metrics['episode/count']:.0f} episodes ended"


def check_overflow(pair: Pair) -> tuple[Status, str]:
    """No contact or constraint of any world found no room, in the long run."""
    if pair.env.physics.room is None:
        return "ok", f"{pair.backend} makes room as it needs it"
    count = pair.num_overflows
    _require(count is not None, "the long run did not get to its end")
    _require(not count, f"contacts or constraints found no room in {count} of {pair.num_worlds} worlds")
    return "ok", "none"


def check_continuation(pair: Pair) -> tuple[Status, str]:
    """New worlds that load the saved state go on bit for bit."""
    env, moves = pair.env, pair.actions(SHORT_STEPS)
    env.reset(SEED)
    half = SHORT_STEPS // 2
    play(env, moves[:half])
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    expected = play(env, moves[half:])
    other = pair.make(pair.num_worlds, seed=SEED + 1)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    require_same(expected, play(other, moves[half:]), "a continued run differs")
    other.close()
    return "ok", f"{SHORT_STEPS - half} steps, bit for bit"


def check_drift(pair: Pair) -> tuple[Status, str]:
    """One control step from states of the referee adds no more than float32's rounding; see `parity`."""
    if pair.backend == "mujoco":
        return "skipped", "is the referee"
    pair.env.reset(SEED)
    drift = drift_of(pair.env.physics, pair.env.task, DRIFT_STEPS)
    sizes = drift.engine._asdict().items()
    seen = ", ".join(f"{name} {errors.median():.0e} ({errors.max():.0e})" for name, errors in sizes)
    verdict = judge(drift, pair.task, pair.env.task, pair.backend, pair.env.physics.model)
    if verdict.status == "failed":
        raise CheckFailedError(f"{seen}: {verdict.detail}")
    return verdict.status, seen if verdict.status == "ok" else f"{seen}: {verdict.detail}"


CHECKS: dict[str, Callable[[Pair], tuple[Status, str]]] = {
    "spec": check_spec,
    "same seed": check_same_seed,
    "alone": check_alone,
    "permuted": check_permuted,
    "final_obs": check_final_obs,
    "continues": check_continuation,
    "1,000 steps": check_long_run,
    "overflow": check_overflow,
    "drift": check_drift,
}


def play(env: SimEnv, moves: Tensor) -> Played:
    """Everything that the steps under `moves` `[T, N, A]` gave, stacked `[T, N, ...]`."""
    rows = []
    for action in moves:
        result = env.step(action)
        row = {f"obs.{group}": value for group, value in result.obs.items()}
        row |= {f"final_obs.{group}": value for group, value in result.final_obs.items()}
        row |= {name: getattr(result, name) for name in ("reward", "terminated", "truncated")}
        rows.append({name: value.clone() for name, value in row.items()})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def require_same(expected: Played, got: Played, problem: str) -> None:
    """Raises a CheckFailedError that says what differs first, and by how much."""
    different = {name: _per_world(expected[name] != got[name]) for name in expected}  # [T, N]
    first = {name: int(where.any(-1).nonzero()[0]) for name, where in different.items() if where.any()}
    if not first:
        return
    name = min(first, key=lambda name: first[name])
    step = first[name]
    world = int(different[name][step].nonzero()[0])
    size = (expected[name][step, world].double() - got[name][step, world].double()).abs().max()
    raise CheckFailedError(f"{problem}: {name} in step {step + 1}, world {world}, by {size:.1e}")


def _per_world(where: Tensor) -> Tensor:
    """`[T, N, ...]` bool -> `[T, N]`: anywhere."""
    return where.flatten(2).any(-1) if where.dim() > 2 else where


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise CheckFailedError(problem)


def _require_equal(what: str, got: object, expected: object) -> None:
    _require(got == expected, f"{what}: {got}, expected {expected}")


@contextlib.contextmanager
def _longer_episodes(env: SimEnv) -> Iterator[None]:
    """The clock ends no episode."""
    usual = env.task.max_episode_steps
    env.task.max_episode_steps = usual + 1
    try:
        yield
    finally:
        env.task.max_episode_steps = usual


def main(task: str, backend: str) -> None:
    """Check one pair; what engines print goes to stderr, because stdout carries the events."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)

    def send(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=events, flush=True)

    for finding in check_pair(Pair(task, backend), begins=lambda name: send({"begins": name})):
        send(asdict(finding))


if __name__ == "__main__":
    main(*sys.argv[1:])
