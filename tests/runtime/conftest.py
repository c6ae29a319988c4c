"""The tests of this folder share `bundles.py` and a clock."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


class Clock:
    """Time that passes only when it is told to, or slept; a sleep is `oversleep_ns` too long."""

    def __init__(self):
        self.now_ns = 10**12
        self.oversleep_ns = 0

    def pass_s(self, seconds):
        self.now_ns += round(seconds * 1e9)

    def sleep(self, seconds):
        assert seconds >= 0
        self.pass_s(seconds)
        self.now_ns += self.oversleep_ns


@pytest.fixture
def clock(monkeypatch):
    """The time of this process: nothing waits, and nothing depends on how busy the machine is."""
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_ns / 1e9)
    for name in ("monotonic_ns", "perf_counter_ns"):
        monkeypatch.setattr(time, name, lambda: clock.now_ns)
    return clock
