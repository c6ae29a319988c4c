"""How many worlds: the most that still raise throughput and fit in memory, for `env.num_envs: auto`.

Short timed trials of the run's own env, with random actions, over a doubling number of worlds. The trials run
eagerly, because a compiled task would be built anew for every number; on mjx XLA does that all the same.
What was chosen is written into the run's config, and a run that continues takes it from there.

Letters: N worlds, A actions, K control steps between two looks at the clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from envs_gpu.vec_env import EnvSpec
from envs_gpu.zoo import is_zoo_name
from pi_incubator import memory
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.models import MAX_NUM_ENVS, OPEN
from pi_incubator.envs import make_training_env

FIRST = 16
"""Worlds of the first trial, or the next number above whose batch the minibatches divide."""
LEAST_GAIN = 0.1
"""A doubling that raises steps/s by a smaller share than this is not worth its memory."""
NUM_SLICES, SLICE_S = 3, 0.1
"""Timed pieces of a trial, of which the fastest counts: other work on the machine only slows it down."""
WARM_UP_STEPS, BLOCK_STEPS = 2, 4


class Choice(NamedTuple):
    """What the trials found."""

    num_envs: int
    steps_per_s: dict[int, float]
    """By number of worlds, in the order of the trials."""
    stopped_by: str
    """Why no larger number was taken."""


def choose_num_envs(cfg: ExperimentConfig, plan: ComputePlan) -> tuple[ExperimentConfig, ComputePlan]:
    """`cfg` with a number of worlds, and `plan` with the reason; both as they are if there is one already.

    Raises:
        SettingError: not even the smallest number fits in memory, or the env cannot be made.
    """
    if cfg.env.num_envs != OPEN:
        return cfg, plan
    numbers = candidates(cfg)
    memory.check_memory(cfg.with_num_envs(numbers[0]), plan.device)
    choice = choose(
        numbers,
        lambda num_envs: steps_per_s(cfg.with_num_envs(num_envs), plan),
        lambda num_envs: fits(cfg.with_num_envs(num_envs), plan.device),
    )
    speeds = ", ".join(f"{num_envs}: {speed:,.0f}" for num_envs, speed in choice.steps_per_s.items())
    reason = (
        f"env.num_envs {choice.num_envs}: env steps/s of random actions are {speeds}; {choice.stopped_by}"
    )
    return cfg.with_num_envs(choice.num_envs), replace(plan, reasons=(*plan.reasons, reason))


def candidates(cfg: ExperimentConfig) -> list[int]:
    """The numbers to try, each twice the one before; minibatches divide the batch of each."""
    algorithm = cfg.algorithm
    most = min(MAX_NUM_ENVS, cfg.training.total_steps // algorithm.steps_per_iteration(1))
    first = algorithm.num_envs_multiple()
    while first < FIRST and 2 * first <= most:
        first *= 2
    return [first << doublings for doublings in range((most // first).bit_length())]


def choose(
    numbers: Iterable[int], measure: Callable[[int], float], fits: Callable[[int], bool] = lambda _: True
) -> Choice:
    """Go up `numbers` until one does not fit, or raises what `measure` gives by less than LEAST_GAIN."""
    speeds: dict[int, float] = {}
    best = 0
    for num_envs in numbers:
        if best and not fits(num_envs):
            return Choice(best, speeds, f"{num_envs} do not fit in memory")
        try:
            speeds[num_envs] = measure(num_envs)
        except Exception as error:
            if not best or not memory.is_out_of_memory(error):
                raise
            return Choice(best, speeds, f"{num_envs} ran out of memory")
        if best and speeds[num_envs] < (1 + LEAST_GAIN) * speeds[best]:
            return Choice(best, speeds, f"{num_envs} gain less than {LEAST_GAIN:.0%}")
        best = num_envs
    return Choice(best, speeds, f"{2 * best} are more than a config may have or than one iteration can use")


def fits(cfg: ExperimentConfig, device: torch.device) -> bool:
    """Whether the memory estimate says that `cfg` fits; yes for envs whose physics nobody can look into."""
    if is_zoo_name(cfg.env.name):
        return True
    return memory.estimate(cfg, device).total <= memory.free_bytes(device)


@torch.no_grad()
def steps_per_s(cfg: ExperimentConfig, plan: ComputePlan) -> float:
    """Env steps a second, over all worlds of `cfg`, in a fraction of a second after building and warm-up."""
    env = make_training_env(cfg, replace(plan, compiled=False))
    try:
        actions = random_actions(env.spec, BLOCK_STEPS)
        for _ in range(WARM_UP_STEPS):
            env.step(actions[0])
        rates = []
        for _ in range(NUM_SLICES):
            num_steps, began_s, now_s = 0, _now_s(env.device), 0.0
            while now_s < began_s + SLICE_S:
                for action in actions:
                    env.step(action)
                num_steps += BLOCK_STEPS * env.num_envs
                now_s = _now_s(env.device)
            rates.append(num_steps / (now_s - began_s))
        return max(rates)
    finally:
        env.close()
        del env
        _release(plan.device)


def random_actions(spec: EnvSpec, num_steps: int) -> Tensor:
    """Uniform actions `[K, N, A]` between the limits (-1 and 1 where there are none), the same every time."""
    limits = torch.tensor([spec.action_low, spec.action_high])
    low, high = limits.nan_to_num(neginf=-1.0, posinf=1.0)
    unit = torch.rand(num_steps, spec.num_envs, spec.action_dim, generator=torch.Generator().manual_seed(1))
    return torch.lerp(low, high, unit).to(spec.device)


def _now_s(device: torch.device) -> float:
    """The time at which everything that was asked of `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _release(device: torch.device) -> None:
    """Give back what a trial held, so that the next one sees the memory that is free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
