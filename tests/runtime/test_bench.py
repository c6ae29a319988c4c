"""`bench` reports the times that steps took, and every deadline that they missed."""

import bundles
import numpy as np
import pytest

from pi_incubator.runtime import ScheduleError
from pi_incubator.runtime.bench import NUM_OBSERVATIONS, bench, random_observations
from pi_incubator.runtime.contract import check_contract

CONTRACT = check_contract(bundles.contract_dict())


class TimedPolicy:
    """A policy whose steps take the seconds that it was told; those in `flagged` are no normal ones."""

    contract = CONTRACT

    def __init__(self, clock, durations_s, flagged=()):
        self.clock, self.durations_s, self.flagged = clock, durations_s, flagged
        self.observations, self.flags, self.num_resets = [], 0, 0

    def reset(self):
        self.num_resets += 1

    def step(self, observation):
        self.flags = int(len(self.observations) in self.flagged)
        self.clock.pass_s(self.durations_s[len(self.observations)])
        self.observations.append(observation.copy())


def test_latencies_are_percentiles_of_the_times_that_steps_took(clock):
    in_a_row_s = np.random.default_rng(1).permutation(np.arange(1, 1001)) * 1e-6
    policy = TimedPolicy(clock, [*in_a_row_s, *[1e-3] * 50], flagged=(3, 500, 999, 1020))
    result = bench(policy, num_steps=1000, paced_s=1.0)
    assert policy.num_resets == 1
    assert (result.num_steps, result.num_paced_steps) == (1000, 50)
    assert result.step_us == pytest.approx(np.percentile(np.arange(1, 1001), [50, 99, 99.9, 100]))
    assert result.paced_us == pytest.approx([1000] * 4)
    assert result.wake_us == (0, 0, 0, 0)
    assert (result.deadline_misses, result.num_flagged) == (0, 3)


def test_every_deadline_that_is_missed_counts(clock):
    """At 50 Hz a step of 45 ms misses two, and the last one, of 25 ms, one more; wakes are 7 µs late."""
    durations_s = [1e-6, *[1e-3] * 9, 45e-3, *[1e-3] * 39, 25e-3]
    clock.oversleep_ns = 7000
    result = bench(TimedPolicy(clock, durations_s), num_steps=1, paced_s=1.0)
    assert result.deadline_misses == 3
    assert result.paced_us == pytest.approx(
        np.percentile(np.multiply(durations_s[1:], 1e6), [50, 99, 99.9, 100])
    )
    # The step after the two that were missed begins 45 ms - 40 ms after its tick.
    assert result.wake_us == pytest.approx(np.percentile([7.0] * 49 + [5007.0], [50, 99, 99.9, 100]))


def test_all_observations_are_used_in_turn(clock):
    policy = TimedPolicy(clock, [1e-6] * 1000)
    bench(policy, num_steps=600, paced_s=6.0)
    expected = random_observations(CONTRACT, NUM_OBSERVATIONS)
    for start in (0, 600):  # in a row, at the rate
        for i in range(300):
            np.testing.assert_array_equal(policy.observations[start + i], expected[i % NUM_OBSERVATIONS])


def test_one_step_is_timed_at_the_rate_however_short_the_time(clock):
    assert bench(TimedPolicy(clock, [1e-6] * 2), num_steps=1, paced_s=1e-6).num_paced_steps == 1


def test_a_priority_is_asked_for(clock):
    with pytest.raises(ScheduleError, match="priority 100"):
        bench(TimedPolicy(clock, [1e-6] * 2), num_steps=1, paced_s=0.02, realtime_priority=100)


@pytest.mark.parametrize(("low", "high"), [(None, None), (-5.0, 5.0), (0.5, None), (None, -0.25), (0.5, 0.6)])
def test_random_observations_fill_the_limits_within_1(low, high):
    """The limits are those of the first term; the second one, the command, has none."""
    raw = bundles.contract_dict()
    raw["observation"]["terms"][0] |= {"low": low, "high": high}
    values = random_observations(check_contract(raw), 1000)
    assert values.dtype == np.float32
    expected_low, expected_high = max(-1.0, low or -1.0), min(1.0, high or 1.0)
    for part, ends in ((values[:, :30], (expected_low, expected_high)), (values[:, 30:], (-1.0, 1.0))):
        assert (part.min(), part.max()) == pytest.approx(ends, abs=0.01)
    np.testing.assert_array_equal(values, random_observations(check_contract(raw), 1000))
