"""How long a step takes, and how often the deadline of the control rate is missed.

Letters: N steps, D observation width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ._network import Array
from ._pace import Pace, real_time
from .contract import Contract
from .policy import Policy

NUM_OBSERVATIONS = 256
PERCENTILES = (50.0, 99.0, 99.9, 100.0)


@dataclass(frozen=True)
class BenchResult:
    """Latencies are of `Policy.step`, everything included, in µs: p50, p99, p99.9 and the longest.

    `step_us` is of steps one after the other, `paced_us` of steps at the control rate, when caches have had
    time to go cold, `wake_us` how late the system woke the loop for them.
    """

    num_steps: int
    step_us: tuple[float, ...]
    num_paced_steps: int
    paced_us: tuple[float, ...]
    wake_us: tuple[float, ...]
    deadline_misses: int
    num_flagged: int


def bench(
    policy: Policy, *, num_steps: int, paced_s: float, realtime_priority: int | None = None
) -> BenchResult:
    """Step a policy on random observations within the contract's limits.

    Args:
        policy: to time; it is reset.
        num_steps: one after the other.
        paced_s: how long to step at the control rate.
        realtime_priority: of SCHED_FIFO, 1 to 99.

    Raises:
        ScheduleError: the system does not permit the priority.
    """
    observations = random_observations(policy.contract, NUM_OBSERVATIONS)
    num_paced = max(1, round(paced_s * policy.contract.control_hz))
    policy.reset()
    with real_time(realtime_priority):
        step_ns, num_flagged = _time_steps(policy, observations, num_steps)
        paced_ns, wake_ns, misses = _time_paced(policy, observations, num_paced)
    return BenchResult(
        num_steps=num_steps,
        step_us=_percentiles_us(step_ns),
        num_paced_steps=num_paced,
        paced_us=_percentiles_us(paced_ns),
        wake_us=_percentiles_us(wake_ns),
        deadline_misses=misses,
        num_flagged=num_flagged,
    )


def random_observations(contract: Contract, count: int) -> Array:
    """Observations `[count, D]`, uniform within -1 and 1 and the contract's limits; always the same."""
    values = np.random.default_rng(0).uniform(-1, 1, (count, contract.observation_width)).astype(np.float32)
    start = 0
    for term in contract.terms:
        part = values[:, start : start + term.width]
        low = -1.0 if term.low is None else term.low
        high = 1.0 if term.high is None else term.high
        np.clip(part, low, high, out=part)
        start += term.width
    return values


def _time_steps(policy: Policy, observations: Array, num_steps: int) -> tuple[np.ndarray, int]:
    times_ns = np.zeros(num_steps, np.int64)
    num_flagged = 0
    rows = list(observations)
    for i in range(num_steps):
        observation = rows[i % len(rows)]
        start = time.perf_counter_ns()
        policy.step(observation)
        times_ns[i] = time.perf_counter_ns() - start
        num_flagged += policy.flags != 0
    return times_ns, num_flagged


def _time_paced(policy: Policy, observations: Array, num_steps: int) -> tuple[np.ndarray, np.ndarray, int]:
    step_ns, wake_ns = np.zeros(num_steps, np.int64), np.zeros(num_steps, np.int64)
    misses = 0
    pace = Pace(1.0 / policy.contract.control_hz)
    for i in range(num_steps):
        misses += pace.wait()
        start = time.monotonic_ns()
        policy.step(observations[i % len(observations)])
        step_ns[i] = time.monotonic_ns() - start
        wake_ns[i] = start - pace.tick_ns
    misses += pace.wait()  # the last step's
    return step_ns, wake_ns, misses


def _percentiles_us(times_ns: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(times_ns / 1e3, PERCENTILES))
