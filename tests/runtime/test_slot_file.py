"""A policy's end makes its own file in shared memory, mode 0600; neither end writes into anybody else's."""

import os
import socket
import stat
import time
import uuid
from contextlib import closing
from pathlib import Path

import bundles
import numpy as np
import pytest

from pi_incubator.runtime import LinkError
from pi_incubator.runtime.contract import check_contract
from pi_incubator.runtime.links import SILENCE_S, PolicyLink, RobotLink

CONTRACT = check_contract(bundles.contract_dict())
OBSERVATION = np.arange(bundles.WIDTH, dtype=np.float32)
TARGET = np.linspace(-0.5, 0.5, 12, dtype=np.float32)


class Slot:
    """A name in shared memory that nobody else has, and another beside it."""

    def __init__(self):
        name = f"test-{uuid.uuid4().hex}"
        self.url, self.path = f"shm:///{name}", Path("/dev/shm") / name
        self.other = self.path.with_name(f"{name}-other")

    def clear(self):
        for path in (self.path, self.other):
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)


@pytest.fixture
def slot():
    slot = Slot()
    yield slot
    slot.clear()


@pytest.fixture(params=["udp", "shm"])
def url(request, slot):
    if request.param == "shm":
        return slot.url
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"udp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def used():
    """The bytes that a policy leaves behind when it is killed after an observation."""
    slot = Slot()
    with closing(PolicyLink(slot.url, CONTRACT)), closing(RobotLink(slot.url, CONTRACT)) as robot:
        robot.send(OBSERVATION)
        return slot.path.read_bytes()


def exchange(policy, robot, i):
    robot.send(OBSERVATION + i)
    np.testing.assert_array_equal(policy.receive(1.0), OBSERVATION + i)
    policy.send(TARGET + i, 0)
    np.testing.assert_array_equal(robot.receive(1.0), TARGET + i)


def test_the_layout_in_shared_memory(slot):
    """Counter and packet, in 64 bytes times n: an observation of 164 bytes in 192, a target of 80 in 128."""
    with closing(PolicyLink(slot.url, CONTRACT)) as policy, closing(RobotLink(slot.url, CONTRACT)) as robot:
        for i in range(4):
            exchange(policy, robot, i)
        policy.send(TARGET, 0)
        data = slot.path.read_bytes()
    assert len(data) == 192 + 128
    for at, kind, count, values in ((0, b"PIOB", 4, OBSERVATION + 3), (192, b"PITG", 5, TARGET)):
        assert int.from_bytes(data[at : at + 8], "little") == count
        assert data[at + 8 : at + 12] == kind
        np.testing.assert_array_equal(np.frombuffer(data, "<f4", len(values), at + 40), values)


def test_packets_are_counted_to_the_end_of_64_bits_and_on(slot):
    """Both ends go on from the counters that they find."""
    with closing(PolicyLink(slot.url, CONTRACT)) as policy:
        with slot.path.open("r+b") as file:
            file.write((2**64 - 2).to_bytes(8, "little"))
        with closing(RobotLink(slot.url, CONTRACT)) as robot:
            counts = []
            for i in range(4):
                exchange(policy, robot, i)
                counts.append(int.from_bytes(slot.path.read_bytes()[:8], "little"))
    assert counts == [2**64 - 1, 0, 1, 2]


def test_a_packet_that_is_being_written_is_not_taken(slot):
    """Half of a new one over the old: it is taken once the other half is there."""
    with closing(PolicyLink(slot.url, CONTRACT)) as policy, closing(RobotLink(slot.url, CONTRACT)) as robot:
        exchange(policy, robot, 0)
        robot.send(OBSERVATION + 1)
        whole = slot.path.read_bytes()[8 : 8 + 164]
        with slot.path.open("r+b", buffering=0) as file:
            file.seek(8 + 100)
            file.write(bytes(64))
            assert policy.receive(0.01) is None
            file.seek(8 + 100)
            file.write(whole[100:])
        np.testing.assert_array_equal(policy.receive(0.0), OBSERVATION + 1)
        assert (policy.counts.malformed, policy.counts.accepted) == (0, 2)


def test_a_policy_may_be_started_again(url):
    """The robot's end finds the new one by itself; what was sent between the two is lost."""
    policy = PolicyLink(url, CONTRACT)
    with closing(RobotLink(url, CONTRACT)) as robot:
        for i in range(3):
            exchange(policy, robot, i)
            policy.close()
            robot.send(OBSERVATION)
            assert robot.receive(0.01) is None
            policy = PolicyLink(url, CONTRACT)
        exchange(policy, robot, 3)
        assert policy.began_episode
    policy.close()


def test_a_policy_may_be_started_again_after_it_was_killed(slot, used):
    """It left its file, which the robot's end has mapped."""
    slot.path.write_bytes(used)
    with closing(RobotLink(slot.url, CONTRACT)) as robot:
        robot.send(OBSERVATION)
        with closing(PolicyLink(slot.url, CONTRACT)) as policy:
            for i in range(3):
                exchange(policy, robot, i)


def test_a_robot_may_be_started_again(url):
    with closing(PolicyLink(url, CONTRACT)) as policy:
        for i in range(3):
            with closing(RobotLink(url, CONTRACT)) as robot:
                exchange(policy, robot, i)
                assert policy.began_episode
                exchange(policy, robot, i + 1)
                assert not policy.began_episode
            time.sleep(1.1 * SILENCE_S)  # over UDP the next is another sender


def test_what_a_policy_sent_before_it_ended_can_still_be_read(slot):
    policy = PolicyLink(slot.url, CONTRACT)
    with closing(RobotLink(slot.url, CONTRACT)) as robot:
        robot.send(OBSERVATION)
        policy.receive(1.0)
        policy.send(TARGET, 0)
        policy.close()
        with closing(PolicyLink(slot.url, CONTRACT)):
            np.testing.assert_array_equal(robot.receive(1.0), TARGET)


def test_a_robot_writes_into_no_file_that_is_not_the_policys(slot):
    """What takes the place of the policy's file is for another contract: its bytes stay as they are."""
    policy = PolicyLink(slot.url, CONTRACT)
    with closing(RobotLink(slot.url, CONTRACT)) as robot:
        policy.close()
        slot.path.write_bytes(b"\xff" * 64)
        robot.send(OBSERVATION)
        assert slot.path.read_bytes() == b"\xff" * 64
        slot.path.unlink()
        with closing(PolicyLink(slot.url, CONTRACT)) as policy:
            exchange(policy, robot, 1)


@pytest.mark.parametrize("left", ["empty", "used", "larger"])
def test_what_a_dead_policy_left_is_replaced(slot, used, left):
    """By a file of mode 0600: who has the old one open does not see the new one."""
    content = {"empty": b"", "used": used, "larger": bytes(4096)}[left]
    slot.path.write_bytes(content)
    slot.path.chmod(0o666)
    with slot.path.open("rb") as old, closing(PolicyLink(slot.url, CONTRACT)) as policy:
        assert stat.S_IMODE(slot.path.stat().st_mode) == 0o600
        with closing(RobotLink(slot.url, CONTRACT)) as robot:
            exchange(policy, robot, 1)
        assert old.read() == content
    assert not slot.path.exists()


def test_the_mode_does_not_depend_on_the_umask(slot):
    before = os.umask(0o777)
    try:
        with closing(PolicyLink(slot.url, CONTRACT)):
            assert stat.S_IMODE(slot.path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def make_hard_link(slot, content):
    slot.other.write_bytes(content)
    slot.path.hardlink_to(slot.other)


KINDS = {
    "link": lambda slot, _: slot.path.symlink_to(slot.other),
    "hanging link": lambda slot, _: slot.path.symlink_to("none"),
    "hard link": make_hard_link,
    "pipe": lambda slot, _: os.mkfifo(slot.path),
    "folder": lambda slot, _: slot.path.mkdir(),
    "another user's": lambda slot, content: slot.path.write_bytes(content),
}


@pytest.mark.parametrize("end", [PolicyLink, RobotLink])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(10)
def test_what_is_not_this_users_own_file_is_refused(slot, used, kind, end, monkeypatch):
    slot.other.write_bytes(used)
    KINDS[kind](slot, used)
    user = os.geteuid()
    if kind == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    problem = {
        "hard link": "has another name too",
        "another user's": f"belongs to another user .{user}.",
    }.get(kind, "is no regular file")
    before = os.lstat(slot.path)
    with pytest.raises(LinkError, match=rf"^{slot.path}: {problem}.*; remove it, or name a free one$"):
        end(slot.url, CONTRACT)
    assert os.lstat(slot.path) == before
    assert slot.other.read_bytes() == used


def test_a_file_that_was_exchanged_before_it_was_opened_is_refused(slot, used, monkeypatch):
    """Who looks first and opens then may get another file than it looked at."""
    slot.path.write_bytes(used)
    fine = os.lstat(slot.path)
    slot.other.hardlink_to(slot.path)
    monkeypatch.setattr(os, "lstat", lambda _: fine)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(LinkError, match="has another name too"):
        RobotLink(slot.url, CONTRACT)
    assert os.listdir("/proc/self/fd") == before
    assert slot.path.read_bytes() == used


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("end", [PolicyLink, RobotLink])
def test_a_link_or_pipe_that_takes_a_files_place_is_not_followed(slot, used, kind, end, monkeypatch):
    """Although it was a file when it was looked at."""
    slot.other.write_bytes(used)
    fine = os.lstat(slot.other)
    KINDS[kind](slot, used)
    monkeypatch.setattr(os, "lstat", lambda _: fine)
    with pytest.raises(LinkError, match=rf"^{slot.path}: "):
        end(slot.url, CONTRACT)
    assert slot.other.read_bytes() == used


def test_memory_that_is_not_there_is_one_line(slot, tmp_path, monkeypatch):
    """No folder, or no room in it: nothing is left there, and the output stays open."""
    monkeypatch.setattr("pi_incubator.runtime.transports.SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(LinkError, match="No such file or directory; another policy may have it"):
        PolicyLink(slot.url, CONTRACT)
    assert os.fstat(1)
    monkeypatch.setattr("pi_incubator.runtime.transports.SHARED_MEMORY", tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LinkError, match="No space left on device"):
        PolicyLink(slot.url, CONTRACT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"x" * 10, b"x" * 64, bytes(8) + b"x" + bytes(55), bytes(63)])
def test_the_data_of_another_program_are_not_overwritten(slot, content):
    slot.path.write_bytes(content)
    with pytest.raises(LinkError, match="holds the data of another program; name a free one"):
        PolicyLink(slot.url, CONTRACT)
    assert slot.path.read_bytes() == content


def test_a_policy_that_lives_keeps_its_file(slot):
    with closing(PolicyLink(slot.url, CONTRACT)) as policy, closing(RobotLink(slot.url, CONTRACT)) as robot:
        with pytest.raises(LinkError, match="another policy may have it: name a free one"):
            PolicyLink(slot.url, CONTRACT)
        exchange(policy, robot, 0)


def test_a_policy_that_ends_removes_no_file_of_another(slot):
    policy = PolicyLink(slot.url, CONTRACT)
    slot.path.unlink()
    slot.path.write_text("another's")
    policy.close()
    assert slot.path.read_text() == "another's"


def test_a_link_that_is_refused_leaves_nothing_open(slot, used):
    slot.path.write_bytes(b"x")
    before = os.listdir("/proc/self/fd")
    for end in (PolicyLink, RobotLink):
        for _ in range(5):
            with pytest.raises(LinkError):
                end(slot.url, CONTRACT)
    assert os.listdir("/proc/self/fd") == before
