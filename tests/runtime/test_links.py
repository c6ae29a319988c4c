"""Packets between two processes: the newest that is whole and in order is taken, the others are counted."""

import math
import multiprocessing
import os
import select
import socket
import struct
import time
import uuid
import zlib
from contextlib import closing
from pathlib import Path

import bundles
import numpy as np
import pytest

from pi_incubator.runtime import LinkError
from pi_incubator.runtime.contract import check_contract
from pi_incubator.runtime.links import SILENCE_S, PolicyLink, RobotLink
from pi_incubator.runtime.transports import Udp

CONTRACT = check_contract(bundles.contract_dict())
OBSERVATION = np.arange(bundles.WIDTH, dtype=np.float32)
TARGET = np.linspace(-0.5, 0.5, 12, dtype=np.float32)


def free_url():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"udp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(params=["udp", "shm"])
def url(request):
    return free_url() if request.param == "udp" else f"shm:///test-{uuid.uuid4().hex}"


@pytest.fixture
def clock(clock, monkeypatch):
    """Time that passes only while an end waits and nothing comes."""
    select_now = select.select

    def wait(reads, writes, errors, timeout_s):
        ready = select_now(reads, writes, errors, timeout_s)
        if not any(ready):
            clock.now_ns += math.ceil(timeout_s * 1e9)
        return ready

    monkeypatch.setattr(select, "select", wait)
    return clock


@pytest.fixture
def ends(url):
    with closing(PolicyLink(url, CONTRACT)) as policy, closing(RobotLink(url, CONTRACT)) as robot:
        yield policy, robot


@pytest.fixture
def wire():
    """The policy's end, and a bare socket that speaks to it."""
    url = free_url()
    with (
        closing(PolicyLink(url, CONTRACT)) as policy,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bare,
    ):
        bare.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        bare.settimeout(5)
        yield policy, bare


def packet(sequence, values=OBSERVATION, *, kind=b"PIOB", version=1, count=None, sent_ns=123):
    """Written by hand from the table in docs/runtime.md."""
    count = len(values) if count is None else count
    header = struct.pack("<4sHHQqI", kind, version, count, sequence, sent_ns, 0)
    payload = struct.pack(f"<{len(values)}f", *values)
    return header + struct.pack("<I", zlib.crc32(header + payload)) + payload


def test_there_and_back(ends):
    policy, robot = ends
    for i in range(100):
        robot.send(OBSERVATION + i)
        np.testing.assert_array_equal(policy.receive(1.0), OBSERVATION + i)
        assert policy.began_episode == (i == 0)
        policy.send(TARGET - i, flags=i)
        np.testing.assert_array_equal(robot.receive(1.0), TARGET - i)
        assert robot.flags == i
    assert policy.receive(0.0) is None
    assert policy.counts.accepted == robot.counts.accepted == 100
    assert policy.counts.stale == policy.counts.wrong_size == policy.counts.malformed == 0


def test_only_the_newest_counts(ends):
    policy, robot = ends
    for i in range(5):
        robot.send(OBSERVATION + i)
    np.testing.assert_array_equal(policy.receive(1.0), OBSERVATION + 4)
    assert policy.receive(0.0) is None


def test_a_new_episode_begins_at_zero(ends):
    policy, robot = ends
    for _ in range(3):
        robot.send(OBSERVATION)
        policy.receive(1.0)
    policy.send(TARGET, 0)  # comes when the next episode has begun
    robot.begin_episode()
    robot.send(OBSERVATION)
    assert policy.receive(1.0) is not None
    assert policy.began_episode
    policy.send(TARGET + 1, 0)
    np.testing.assert_array_equal(robot.receive(1.0), TARGET + 1)


def test_nobody_on_the_other_side(url):
    with closing(PolicyLink(url, CONTRACT)) as policy:
        start = time.monotonic()
        assert policy.receive(0.05) is None
        assert 0.04 < time.monotonic() - start < 1.0
        policy.send(TARGET, 0)
    if url.startswith("udp"):
        with closing(RobotLink(url, CONTRACT)) as robot:
            robot.send(OBSERVATION)
            assert robot.receive(0.05) is None


def test_the_layout_on_the_wire(wire):
    policy, bare = wire
    bare.send(packet(7))
    np.testing.assert_array_equal(policy.receive(1.0), OBSERVATION)
    policy.send(TARGET, flags=5)
    answer = bare.recv(1000)
    kind, version, count, sequence, _, flags, crc = struct.unpack_from("<4sHHQqII", answer)
    assert (kind, version, count, sequence, flags) == (b"PITG", 1, 12, 7, 5)
    assert crc == zlib.crc32(answer[:28] + answer[32:])
    np.testing.assert_array_equal(np.frombuffer(answer[32:], "<f4"), TARGET)


@pytest.mark.parametrize(
    ("bad", "counter"),
    [
        (b"", "wrong_size"),
        (packet(9)[:-1], "wrong_size"),
        (packet(9) + b"\0", "wrong_size"),
        (packet(9, OBSERVATION[:12]), "wrong_size"),
        (packet(9, kind=b"PITG"), "malformed"),
        (packet(9, version=2), "malformed"),
        (packet(9, count=12), "malformed"),
        (packet(9)[:-1] + b"\1", "malformed"),
        (packet(5), "stale"),
        (packet(4), "stale"),
    ],
)
def test_what_is_not_taken_is_counted(wire, bad, counter):
    policy, bare = wire
    bare.send(packet(5))
    assert policy.receive(1.0) is not None
    bare.send(bad)
    assert policy.receive(0.05) is None
    assert getattr(policy.counts, counter) == 1
    bare.send(packet(6))
    assert policy.receive(1.0) is not None
    assert policy.counts.accepted == 2


def test_a_flood_does_not_hold_the_loop(wire, monkeypatch):
    policy, bare = wire
    bare.send(packet(1))
    assert policy.receive(1.0) is not None
    monkeypatch.setattr(policy._transport, "receive", lambda _: (b"never ends", bare.getsockname()))
    assert policy.receive(0.01) is None
    assert policy.counts.wrong_size > 0


def test_another_sender_does_not_mix_in(wire, clock):
    policy, bare = wire
    bare.send(packet(5))
    policy.receive(1.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.settimeout(5)
        other.connect(bare.getpeername())
        other.send(packet(6, OBSERVATION + 1))
        assert policy.receive(0.02) is None
        assert policy.counts.stale == 1
        other.send(packet(0, OBSERVATION + 1))
        assert policy.receive(0.02) is None
        assert policy.counts.stale == 2
        clock.pass_s(1.01 * SILENCE_S)
        other.send(packet(0, OBSERVATION + 1))  # a robot that was started again
        assert policy.receive(1.0) is not None
        assert policy.began_episode
        policy.send(TARGET, 0)
        assert other.recv(1000)


@pytest.mark.parametrize(
    ("sent_ns", "wait_s", "begins"),
    [(123, 0.0, False), (122, 0.0, False), (124, 0.0, True), (123, 2.0, False), (5, 2.0, True)],
    ids=["a copy", "late", "started again", "a copy after silence", "rebooted, its clock anew"],
)
@pytest.mark.parametrize("last", [0, 3])
def test_a_zero_begins_an_episode_unless_it_is_a_copy(wire, clock, sent_ns, wait_s, begins, last):
    policy, bare = wire
    for sequence in range(last + 1):
        bare.send(packet(sequence))
        assert policy.receive(1.0) is not None
    clock.pass_s(wait_s * SILENCE_S)
    bare.send(packet(0, OBSERVATION + 1, sent_ns=sent_ns))
    assert (policy.receive(0.02) is not None) == policy.began_episode == begins


def _robot_process(url, contract_dict, count, errors):
    with closing(RobotLink(url, check_contract(contract_dict))) as robot:
        for i in range(count):
            robot.send(OBSERVATION + i)
            target = robot.receive(5.0)
            if target is None or not np.array_equal(target, OBSERVATION[:12] + i):
                errors.put(i)


def test_between_processes(url):
    """Each target is part of the observation that it answers: a torn packet would show."""
    context = multiprocessing.get_context("spawn")
    errors, count = context.Queue(), 1000
    with closing(PolicyLink(url, CONTRACT)) as policy:
        process = context.Process(target=_robot_process, args=(url, CONTRACT.raw, count, errors))
        process.start()
        answered = 0
        while answered < count:
            observation = policy.receive(20.0)
            assert observation is not None, f"no observation after {answered}"
            policy.send(observation[:12], 0)
            answered += 1
        process.join(20)
        assert process.exitcode == 0
    assert errors.empty()


def test_a_robot_waits_its_time_where_nobody_listens():
    """The system tells at once that nobody has the port: once for each packet."""
    with closing(RobotLink(free_url(), CONTRACT)) as robot:
        for _ in range(3):
            robot.send(OBSERVATION)
            start = time.monotonic()
            assert robot.receive(0.1) is None
            assert 0.09 < time.monotonic() - start < 1.0
        robot.send(OBSERVATION)
        assert robot.receive(0.0) is None


def test_the_first_packet_after_nobody_listened_arrives():
    """The system tells of the packet before when the next is sent, and does not send that."""
    url = free_url()
    with closing(RobotLink(url, CONTRACT)) as robot:
        robot.send(OBSERVATION)
        time.sleep(0.01)
        with closing(PolicyLink(url, CONTRACT)) as policy:
            robot.send(OBSERVATION + 1)
            np.testing.assert_array_equal(policy.receive(1.0), OBSERVATION + 1)


def test_what_a_robot_sends():
    """A policy in another language would read it so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bare:
        bare.bind(("127.0.0.1", 0))
        bare.settimeout(5)
        with closing(RobotLink(f"udp://127.0.0.1:{bare.getsockname()[1]}", CONTRACT)) as robot:
            for sequence in range(3):
                before_ns = time.monotonic_ns()
                robot.send(OBSERVATION)
                data = bare.recv(1000)
                sent_ns = struct.unpack_from("<q", data, 16)[0]
                assert before_ns <= sent_ns <= time.monotonic_ns()
                assert data == packet(sequence, sent_ns=sent_ns)


def test_an_end_that_is_closed_leaves_nothing_open(url):
    """No descriptor and no mapped memory; nor does a robot's end whose policy is started again."""

    def opened():
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("/dev/shm/test-")

    before, meanwhile = opened(), set()
    for _ in range(2):
        policy = PolicyLink(url, CONTRACT)
        with closing(RobotLink(url, CONTRACT)) as robot:
            for _ in range(3):
                policy.close()
                policy = PolicyLink(url, CONTRACT)
                robot.send(OBSERVATION)
                assert policy.receive(1.0) is not None
                meanwhile.add(opened())
            policy.close()
    assert opened() == before
    assert len(meanwhile) == 1


@pytest.mark.parametrize("silence_s", [0.0, 0.099, 0.101])
def test_another_sender_takes_over_after_a_tenth_of_a_second(wire, clock, silence_s):
    """As docs/runtime.md says."""
    policy, bare = wire
    bare.send(packet(5))
    policy.receive(1.0)
    clock.pass_s(silence_s)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.connect(bare.getpeername())
        other.send(packet(9, OBSERVATION + 1))
        assert (policy.receive(0.02) is not None) == policy.began_episode == (silence_s > 0.1)


def test_a_late_start_of_the_policy_begins_an_episode(wire):
    """The first packet that it hears may have any number."""
    policy, bare = wire
    assert not policy.began_episode
    bare.send(packet(2**64 - 1))
    assert policy.receive(1.0) is not None
    assert policy.began_episode


def test_a_target_before_any_observation_answers_the_first(ends):
    """Over UDP there is nobody yet to whom it could go."""
    policy, robot = ends
    policy.send(TARGET, 0)
    robot.send(OBSERVATION)
    expected = None if isinstance(robot._transport, Udp) else TARGET
    np.testing.assert_array_equal(robot.receive(0.05), expected)


def test_answers_to_older_observations_are_counted(ends):
    policy, robot = ends
    robot.send(OBSERVATION)
    policy.receive(1.0)
    for i in (1, 2):
        robot.send(OBSERVATION)
        policy.send(TARGET, 0)  # to the one before
        assert robot.receive(0.02) is None
        assert (robot.counts.stale, robot.counts.accepted) == (i, i - 1)
        policy.receive(1.0)
        policy.send(TARGET, 0)
        assert robot.receive(1.0) is not None


@pytest.mark.parametrize("timeout_s", [0.0, 0.15])
def test_both_ends_wait_as_long_as_they_are_told(ends, clock, timeout_s):
    """By the clock; shared memory is looked at every 50 µs."""
    policy, robot = ends
    robot.send(OBSERVATION)
    assert policy.receive(1.0) is not None
    for end in ends:
        start_ns = clock.now_ns
        assert end.receive(timeout_s) is None
        assert (clock.now_ns - start_ns) / 1e9 == pytest.approx(timeout_s, abs=1e-4)
    robot.send(OBSERVATION)
    start_ns = clock.now_ns
    assert policy.receive(5.0) is not None  # it does not wait for a second one
    assert clock.now_ns == start_ns


def test_waiting_leaves_the_core_to_others(ends):
    """A robot's computer has other work; shared memory is looked at every 50 µs, and no more often."""
    for end in ends:
        began_s = time.process_time()
        assert end.receive(0.3) is None
        assert time.process_time() - began_s < 0.15


def test_what_the_system_does_not_send_is_lost():
    """As where the network is down: here, a datagram that is too long for UDP."""
    robot = Udp("127.0.0.1", int(free_url().rpartition(":")[2]), listens=False, max_bytes=10)
    with closing(robot):
        robot.send(bytes(70_000))
        robot.send(b"x")


def test_the_largest_datagram():
    """UDP over IPv4 carries 65,507 bytes: a header of 32 and 16,368 values, but not one more."""
    url = free_url()
    largest = check_contract(bundles.contract_dict(sensors=16_368 - bundles.COMMANDS))
    with closing(PolicyLink(url, largest)) as policy, closing(RobotLink(url, largest)) as robot:
        values = np.arange(16_368, dtype=np.float32)
        robot.send(values)
        np.testing.assert_array_equal(policy.receive(1.0), values)
    wider = check_contract(bundles.contract_dict(sensors=16_369 - bundles.COMMANDS))
    with pytest.raises(LinkError, match=r"cannot carry packets of 65508 bytes \(at most 65507\)"):
        PolicyLink(url, wider)


def test_packets_that_are_too_large():
    wide = check_contract(bundles.contract_dict(sensors=2**16 - 3))
    with pytest.raises(LinkError, match="a packet holds 65535 values, the contract asks for 65536"):
        PolicyLink(f"shm:///test-{uuid.uuid4().hex}", wide)
    largest = check_contract(bundles.contract_dict(sensors=2**16 - 4))
    with pytest.raises(LinkError, match=r"cannot carry packets of 262172 bytes .*; give shm:///NAME"):
        PolicyLink(free_url(), largest)
    url, values = f"shm:///test-{uuid.uuid4().hex}", np.arange(2**16 - 1, dtype=np.float32)
    with closing(PolicyLink(url, largest)) as policy, closing(RobotLink(url, largest)) as robot:
        robot.send(values)
        np.testing.assert_array_equal(policy.receive(1.0), values)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tcp://127.0.0.1:1",
        "udp://127.0.0.1",
        "udp://:5000",
        "udp:///name",
        "udp://127.0.0.1:99999",
        "shm://name",
        "shm://host/name",
        "shm:///a/../b",
        "shm:///",
        "tcp:///name",
    ],
)
def test_a_wrong_url(url):
    with pytest.raises(LinkError, match=r"give udp://HOST:PORT or shm:///NAME"):
        PolicyLink(url, CONTRACT)


def test_a_taken_address(url):
    with closing(PolicyLink(url, CONTRACT)), pytest.raises(LinkError, match="name a"):
        PolicyLink(url, CONTRACT)


def test_shared_memory_needs_the_policy_first_and_the_same_contract():
    name = f"test-{uuid.uuid4().hex}"
    with pytest.raises(LinkError, match="start the policy's end first"):
        RobotLink(f"shm:///{name}", CONTRACT)
    with closing(PolicyLink(f"shm:///{name}", CONTRACT)):
        other = check_contract(bundles.contract_dict(sensors=100))
        with pytest.raises(LinkError, match="contract of other widths"):
            RobotLink(f"shm:///{name}", other)
        assert os.stat(f"/dev/shm/{name}").st_mode & 0o077 == 0
    assert not os.path.exists(f"/dev/shm/{name}")
