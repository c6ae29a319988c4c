"""Whether a process grows: what it holds, sampled over iterations, and the slope of each quantity."""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass, field

import numpy as np
import psutil

LIMITS = {"memory_kb": 0.5, "objects": 0.05, "descriptors": 1e-4, "threads": 1e-4, "processes": 1e-4}
"""The growth an iteration that counts as a leak: half a kilobyte, an object in 20 iterations that Python's
garbage collector tracks, and one file descriptor, thread or child process in 10,000 iterations."""
WARM_UP = 0.3
"""The share of the samples that is left out: caches fill, and the allocator finds its size."""
MIN_SAMPLES = 20
"""Slopes of fewer samples after the warm-up mean nothing."""


def holdings() -> dict[str, float]:
    """What this process holds now, after a garbage collection."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back to the system
    process = psutil.Process()
    return {
        "memory_kb": process.memory_info().rss / 1000,
        "objects": len(gc.get_objects()),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "processes": len(process.children(recursive=True)),
    }


@dataclass
class Growth:
    """Samples of `holdings`, and what they say.

    What Python's garbage collector tracks at the first sample is left alone from then on: each later sample
    would go through all modules otherwise.
    """

    iterations: list[int] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)

    def sample(self, iteration: int) -> None:
        """Note what the process holds after an iteration."""
        if not self.samples:
            gc.collect()
            gc.freeze()
        self.iterations.append(iteration)
        self.samples.append(holdings())

    def slopes(self) -> dict[str, float]:
        """Growth an iteration of each quantity after the warm-up.

        The slope is the median over all pairs of samples (Theil and Sen), which single outliers do not move.

        Raises:
            ValueError: there are too few samples.
        """
        first = int(WARM_UP * len(self.samples))
        at = np.array(self.iterations[first:], dtype=float)
        if len(at) < MIN_SAMPLES:
            raise ValueError(f"{len(at)} samples after the warm-up; at least {MIN_SAMPLES} are needed")
        one, other = np.triu_indices(len(at), 1)
        found = {}
        for name in self.samples[0]:
            values = np.array([sample[name] for sample in self.samples[first:]])
            found[name] = float(np.median((values[other] - values[one]) / (at[other] - at[one])))
        return found

    def leaks(self) -> dict[str, float]:
        """The slopes that are above their limit."""
        return {name: slope for name, slope in self.slopes().items() if slope > LIMITS[name]}
