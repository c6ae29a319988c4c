"""The loop keeps its rate, counts what is late or missing, and stops the robot safely at too much of it."""

import ast
import gc
import itertools
import os
import time
import uuid
import weakref
from contextlib import closing, nullcontext
from pathlib import Path

import bundles
import numpy as np
import pytest

import pi_incubator.runtime
from pi_incubator.runtime import Flags, Policy, ScheduleError
from pi_incubator.runtime._pace import Pace, real_time
from pi_incubator.runtime.links import PolicyLink, RobotLink
from pi_incubator.runtime.loop import Loop

SAFE = np.full(12, 0.1, np.float32)
OBSERVATION = np.linspace(-1, 1, bundles.WIDTH, dtype=np.float32)
LATE, MISSING = "late", None
HZ = 20.0  # slow enough that others on the machine rarely make a period late


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundles.mlp_bundle(tmp_path_factory.mktemp("loop"), hz=HZ)


class Script:
    """A link that gives what it was told to, one entry a period: an observation, MISSING, or LATE."""

    def __init__(self, entries, period_s=1 / HZ):
        self.entries = list(entries)
        self.sent = []
        self.sent_at_s = []
        self.timeouts_s = []
        self.began_episode = False
        self.period_s = period_s

    def receive(self, timeout_s):
        self.timeouts_s.append(timeout_s)
        entry = self.entries.pop(0) if self.entries else MISSING
        if isinstance(entry, str):
            time.sleep(1.2 * self.period_s)
            return OBSERVATION
        return entry

    def send(self, target, flags):
        self.sent.append((target.copy(), flags))
        self.sent_at_s.append(time.monotonic())


class Recorder:
    def __init__(self):
        self.rows = []

    def add(self, observation, target, flags):
        self.rows.append((observation.copy(), target.copy(), flags))


def test_keeps_the_rate_without_drift(bundle):
    link = Script([OBSERVATION] * 25)
    report = Loop(Policy.load(bundle), link).run(max_steps=25)
    assert report.steps == 25
    assert report.missing == 0
    # Wakes are noisy where others work too; multiples of the period from the start do not add that up.
    offsets = np.diff(link.sent_at_s[:25]) - 1 / HZ
    assert abs(np.median(offsets)) < 2e-3
    assert abs(link.sent_at_s[24] - link.sent_at_s[0] - 24 / HZ) < 25e-3


def test_follows_the_policy_and_logs_what_it_sent(bundle):
    rng = np.random.default_rng(0)
    observations = list(rng.normal(size=(6, bundles.WIDTH)).astype(np.float32))
    link, log, policy = Script(observations), Recorder(), Policy.load(bundle)
    Loop(Policy.load(bundle), link, log).run(max_steps=6)
    for observation, (target, flags), row in zip(observations, link.sent, log.rows, strict=False):
        np.testing.assert_array_equal(target, policy.step(observation))
        assert flags == 0
        np.testing.assert_array_equal(row[0], observation)
        np.testing.assert_array_equal(row[1], target)
    np.testing.assert_array_equal(link.sent[-1][0], SAFE)  # the end


@pytest.mark.parametrize("follow_link", [False, True])
def test_without_observations_the_target_is_held_and_then_safe(bundle, follow_link):
    good, gap = [OBSERVATION] * 2, [MISSING] * 5
    link = Script([*good, *gap, *good])
    report = Loop(Policy.load(bundle), link, max_misses=3).run(follow_link=follow_link, max_steps=9)
    targets, flags = zip(*link.sent[:9], strict=True)
    assert list(flags) == [0, 0, *[Flags.DEADLINE_MISSED] * 5, 0, 0]
    np.testing.assert_array_equal(targets[2], targets[1])
    np.testing.assert_array_equal(targets[3], targets[1])
    for target in targets[4:7]:
        np.testing.assert_array_equal(target, SAFE)
    assert not np.array_equal(targets[7], SAFE)
    assert (report.missing, report.stopped) == (5, 3)
    assert report.flagged == {"DEADLINE_MISSED": 5}


@pytest.mark.parametrize("follow_link", [False, True])
def test_a_good_period_ends_the_count_of_misses(bundle, clock, follow_link):
    """Three in a row are too many, unless another number is given; two and two are not."""
    gaps = [OBSERVATION, *[MISSING] * 2, OBSERVATION, *[MISSING] * 2, OBSERVATION]
    assert Loop(Policy.load(bundle), Script(gaps)).run(follow_link=follow_link, max_steps=7).stopped == 0
    gap = [OBSERVATION, *[MISSING] * 3, OBSERVATION]
    assert Loop(Policy.load(bundle), Script(gap)).run(follow_link=follow_link, max_steps=5).stopped == 1
    report = Loop(Policy.load(bundle), Script(gap), max_misses=1).run(follow_link=follow_link, max_steps=5)
    assert (report.missing, report.stopped, report.steps) == (3, 3, 5)


@pytest.mark.parametrize("follow_link", [False, True])
def test_how_long_the_loop_waits_for_its_robot(bundle, clock, follow_link):
    """At the control rate not at all: the newest observation is there or not. Else, for a period.

    Before the first one it looks at least twice a second whether it shall end.
    """
    link = Script([MISSING, MISSING, OBSERVATION, MISSING, OBSERVATION])
    report = Loop(Policy.load(bundle), link).run(follow_link=follow_link, max_steps=3)
    assert (report.steps, report.missing, report.late) == (3, 1, 0)
    assert all(0 < timeout_s <= 0.5 for timeout_s in link.timeouts_s[:3])
    assert link.timeouts_s[3:] == [1 / HZ if follow_link else 0.0] * 2


def test_deadlines_that_one_step_missed_count_one_by_one(bundle, clock):
    """An answer that takes three periods stops the robot at once."""
    link = Script([OBSERVATION] * 6)
    send = link.send

    def send_slowly(target, flags):
        clock.pass_s(3.5 / HZ if len(link.sent) == 2 else 0.0)
        send(target, flags)

    link.send = send_slowly
    report = Loop(Policy.load(bundle), link).run(max_steps=6)
    assert (report.late, report.stopped, report.missing) == (3, 1, 0)
    np.testing.assert_array_equal(link.sent[3][0], SAFE)
    assert [flags for _, flags in link.sent[:6]] == [0, 0, 0, Flags.DEADLINE_MISSED, 0, 0]


@pytest.mark.parametrize("periods", [0.9, 1.1])
def test_an_answer_that_takes_longer_than_a_period_is_late(bundle, clock, periods):
    """The robot that is followed decides the rate; only how long an answer takes is ours."""
    link = Script([OBSERVATION] * 4)
    send = link.send

    def send_slowly(target, flags):
        clock.pass_s(periods / HZ if len(link.sent) == 1 else 0.0)
        send(target, flags)

    link.send = send_slowly
    report = Loop(Policy.load(bundle), link).run(follow_link=True, max_steps=4)
    late = int(periods > 1)
    assert report.late == late
    assert [flags for _, flags in link.sent[:4]] == [0, 0, Flags.DEADLINE_MISSED * late, 0]


@pytest.mark.parametrize("num_slow", [1, 2, 3, 4])
def test_answers_that_take_too_long_in_a_row_stop_the_robot(bundle, clock, num_slow):
    """The third one does; a good one begins the count anew."""
    link = Script([OBSERVATION] * 12)
    send = link.send

    def send_slowly(target, flags):
        clock.pass_s(1.1 / HZ if len(link.sent) % 6 in range(1, 1 + num_slow) else 0.0)
        send(target, flags)

    link.send = send_slowly
    report = Loop(Policy.load(bundle), link).run(follow_link=True, max_steps=12)
    assert report.stopped == 2 * max(0, num_slow - 2)
    assert report.late == 2 * num_slow


def test_flags_are_counted_by_name(bundle, clock):
    bad, out = OBSERVATION.copy(), OBSERVATION.copy()
    bad[4], out[4] = np.nan, 100.0
    link = Script([OBSERVATION, bad, out, bad, OBSERVATION])
    report = Loop(Policy.load(bundle), link).run(max_steps=5)
    assert report.flagged == {"NAN_OBSERVATION": 2, "OUT_OF_RANGE": 1}


def test_an_end_that_does_not_reach_the_safe_target_is_given_up(bundle, clock):
    """After 5 s, however slowly targets may change."""
    link, policy = Script([OBSERVATION]), Policy.load(bundle, max_rate=1e-4)
    policy.reset(np.full(12, -0.8, np.float32))
    start_ns = clock.now_ns
    Loop(policy, link).run(max_steps=1)
    assert clock.now_ns - start_ns == pytest.approx(5e9, abs=1.5e9 / HZ)
    assert len(link.sent) == pytest.approx(1 + 5 * HZ, abs=1)
    assert link.sent[-1][1] == Flags.DEADLINE_MISSED | Flags.RATE_LIMITED


def test_an_end_goes_to_the_safe_target_no_faster_than_permitted(bundle, clock):
    """0.9 at 2 a second and 20 Hz are 9 steps; nothing is sent after the last."""
    link, policy = Script([OBSERVATION * np.nan]), Policy.load(bundle, max_rate=2.0)
    policy.reset(np.full(12, -0.8, np.float32))
    Loop(policy, link).run(max_steps=0, should_stop=iter([False, True]).__next__)
    targets = [target[0] for target, _ in link.sent]
    np.testing.assert_allclose(targets, np.linspace(-0.7, 0.1, 9), atol=1e-6)


def test_late_periods_are_counted_and_stop_the_robot(bundle):
    link = Script([OBSERVATION, OBSERVATION, *[LATE] * 4, OBSERVATION, OBSERVATION, OBSERVATION])
    report = Loop(Policy.load(bundle), link, max_misses=3).run(max_steps=9)
    assert report.late >= 4
    assert report.stopped >= 1
    stopped = [i for i, (target, _) in enumerate(link.sent[:9]) if np.array_equal(target, SAFE)]
    assert stopped
    assert min(stopped) >= 4
    assert link.sent[8][1] == 0


def test_answers_that_take_too_long_stop_the_robot_too(bundle):
    link = Script([OBSERVATION] * 8)
    slow_steps, send = range(1, 5), link.send

    def slow_send(target, flags):
        send(target, flags)
        time.sleep(1.2 * link.period_s if len(link.sent) - 1 in slow_steps else 0)

    link.send = slow_send
    report = Loop(Policy.load(bundle), link, max_misses=3).run(follow_link=True, max_steps=8)
    assert report.late >= 4
    assert np.array_equal(link.sent[4][0], SAFE)
    assert link.sent[4][1] == Flags.DEADLINE_MISSED
    assert link.sent[7][1] == 0


def test_an_episode_begins_with_empty_memory(bundle):
    policy = Policy.load(bundle)
    link = Script([OBSERVATION] * 3)
    link.began_episode = True
    Loop(policy, link).run(max_steps=3)
    for target, _ in link.sent[:3]:
        np.testing.assert_array_equal(target, link.sent[0][0])


def test_an_episode_that_begins_late_still_begins(bundle):
    """The second step would be another one if the policy remembered the first."""
    link = Script([OBSERVATION, LATE, OBSERVATION, OBSERVATION])
    receive = link.receive

    def begin_at_the_late_one(timeout_s):
        link.began_episode = len(link.entries) == 2
        return receive(timeout_s)

    link.receive = begin_at_the_late_one
    Loop(Policy.load(bundle), link, max_misses=100).run(max_steps=4)
    assert link.sent[2][1] == Flags.DEADLINE_MISSED
    policy = Policy.load(bundle)
    policy.step(OBSERVATION)
    np.testing.assert_array_equal(link.sent[1][0], policy.step(OBSERVATION))
    policy.reset()
    np.testing.assert_array_equal(link.sent[2][0], policy.step(OBSERVATION))


def test_a_nan_in_the_stream(bundle):
    bad = OBSERVATION.copy()
    bad[4] = np.nan
    link = Script([OBSERVATION, bad, OBSERVATION])
    report = Loop(Policy.load(bundle), link).run(max_steps=3)
    np.testing.assert_array_equal(link.sent[1][0], SAFE)
    assert [flags for _, flags in link.sent[:3]] == [0, Flags.NAN_OBSERVATION, 0]
    assert report.flagged == {"NAN_OBSERVATION": 1}


def test_ends_when_asked_even_without_a_robot(bundle):
    link = Script([])
    answers = iter([False, False, True, True, True])
    report = Loop(Policy.load(bundle), link).run(should_stop=lambda: next(answers))
    assert report.steps == 0
    np.testing.assert_array_equal(link.sent[0][0], SAFE)


class Feeder:
    """A link whose robot has always just sent an observation."""

    def __init__(self, link, robot):
        self.link, self.robot = link, robot
        self.send = link.send

    @property
    def began_episode(self):
        return self.link.began_episode

    def receive(self, timeout_s):
        self.robot.send(OBSERVATION)
        return self.link.receive(timeout_s)


@pytest.mark.parametrize("follow_link", [False, True])
def test_a_clock_that_is_set_does_not_disturb_the_loop(bundle, monkeypatch, follow_link):
    """The wall clock jumps by a day and back whenever it is read, and the link is a real one."""
    jumps_s, wall_s = itertools.cycle([86_400.0, -86_400.0, 0.0]), time.time()
    monkeypatch.setattr(time, "time", lambda: wall_s + next(jumps_s))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * (wall_s + next(jumps_s))))
    url, policy = f"shm:///test-{uuid.uuid4().hex}", Policy.load(bundle)
    with closing(PolicyLink(url, policy.contract)) as link, closing(RobotLink(url, policy.contract)) as robot:
        start_s = time.monotonic()
        report = Loop(policy, Feeder(link, robot)).run(follow_link=follow_link, max_steps=10)
        seconds = time.monotonic() - start_s
    assert report.steps == 10
    assert (report.missing, report.stopped) == (0, 0)
    assert seconds < 5.0  # a day is not waited for
    assert follow_link or seconds > 8 / HZ


def test_only_the_dates_of_the_log_are_of_the_wall_clock():
    """Deadlines and waits in the runtime are of the monotonic clock."""
    readers = {
        (path.name, node.attr)
        for path in Path(pi_incubator.runtime.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) in ("time", "datetime", "datetime.datetime")
        and node.attr not in ("monotonic", "monotonic_ns", "perf_counter_ns", "sleep")
    }
    assert readers == {("log.py", "time_ns")}


def test_a_tick_is_a_multiple_of_the_period(clock):
    start_ns = clock.now_ns
    pace = Pace(0.02)
    assert pace.tick_ns == start_ns
    for i in range(1, 4):
        clock.pass_s(0.005 * i)
        assert pace.wait() == 0
        assert clock.now_ns == pace.tick_ns == start_ns + 20_000_000 * i


@pytest.mark.parametrize(("work_s", "num_missed"), [(0.021, 1), (0.039, 1), (0.041, 2), (0.099, 4)])
def test_pace_counts_every_missed_deadline(clock, work_s, num_missed):
    """It does not sleep then; the next tick is the next multiple of the period."""
    start_ns = clock.now_ns
    pace = Pace(0.02)
    clock.pass_s(work_s)
    assert pace.wait() == num_missed
    assert clock.now_ns == start_ns + round(work_s * 1e9)
    assert pace.tick_ns == start_ns + 20_000_000 * num_missed
    assert pace.wait() == 0
    assert clock.now_ns == start_ns + 20_000_000 * (num_missed + 1)


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_garbage_collector_does_not_run_meanwhile(collects, fails):
    """What it would find is freed before. Afterwards it is as before, also where the loop fails."""
    was_enabled = gc.isenabled()
    garbage = Recorder()
    garbage.rows.append(garbage)
    garbage_is_there = weakref.ref(garbage)
    try:
        (gc.enable if collects else gc.disable)()
        del garbage
        with pytest.raises(ValueError) if fails else nullcontext(), real_time(None):  # noqa: PT011
            assert not gc.isenabled()
            assert garbage_is_there() is None
            if fails:
                raise ValueError
        assert gc.isenabled() == collects
    finally:
        (gc.enable if was_enabled else gc.disable)()


@pytest.mark.parametrize("priority", [None, 7])
def test_the_scheduler_is_set_and_given_back(monkeypatch, priority):
    """By what the system is asked for, as a priority may not be permitted here."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    asked = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda *arguments: asked.append(arguments))
    with real_time(priority):
        expected = [] if priority is None else [(0, os.SCHED_FIFO, os.sched_param(priority))]
        assert asked == expected
    assert asked[1:] == ([] if priority is None else [(0, *before)])


def test_a_priority_that_is_not_permitted(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with (
        pytest.raises(
            ScheduleError, match="priority 50 is not permitted; give CAP_SYS_NICE, or LimitRTPRIO=50"
        ),
        real_time(50),
    ):
        pass


def test_a_priority_that_does_not_exist():
    with pytest.raises(ScheduleError, match=r"priority 100 .*; give 1 to 99"), real_time(100):
        pass


def test_the_scheduler_is_given_back():
    before = os.sched_getscheduler(0)
    try:
        with real_time(1):
            assert os.sched_getscheduler(0) == os.SCHED_FIFO
    except ScheduleError:
        pytest.skip("real-time priorities are not permitted here")
    assert os.sched_getscheduler(0) == before


def test_rate_limits_hold_where_an_episode_begins_and_to_the_end(bundle):
    link = Script([OBSERVATION * (-1) ** i for i in range(12)])
    receive = link.receive

    def begin_in_the_middle(timeout_s):
        link.began_episode = len(link.entries) == 4
        return receive(timeout_s)

    link.receive = begin_in_the_middle
    Loop(Policy.load(bundle, max_rate=1.0), link, max_misses=100).run(max_steps=12)
    targets = np.array([SAFE, *(target for target, _ in link.sent)])
    assert np.abs(targets[12] - SAFE).max() > 0.1
    assert np.abs(np.diff(targets, axis=0)).max() <= 1.0 / HZ + 1e-6
    np.testing.assert_array_equal(targets[-1], SAFE)
    assert len(link.sent) > 13
