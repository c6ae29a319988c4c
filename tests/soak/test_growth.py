"""What the soak measures: a leak of one small thing an iteration, or of one file in a thousand, is found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.growth import Growth

ROOT = Path(__file__).parents[2]
ITERATIONS, EVERY = 3000, 75

# A process that works without leaking, and leaks what it is told to.
WORK = """
import json, random, sys, threading, subprocess
import numpy as np
from tests.soak.growth import Growth

kind, iterations, every = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
growth, kept, end = Growth(), [], threading.Event()
random.seed(0)
caches = {}
for iteration in range(iterations):
    scratch = [np.zeros(random.randrange(1, 20_000)) for _ in range(2)]
    scratch.append(scratch)  # garbage in a circle
    if iteration < iterations // 5:
        caches[iteration] = bytes(2000)  # a cache that fills, and stays
    if kind == "memory_kb":
        kept.append(bytearray(1000))
    elif kind == "objects":
        kept.append([])
    elif kind == "descriptors" and iteration % 1000 == 0:
        kept.append(open("/dev/null"))
    elif kind == "threads" and iteration % 1000 == 0:
        kept.append(threading.Thread(target=end.wait, daemon=True))
        kept[-1].start()
    elif kind == "processes" and iteration % 1000 == 0:
        kept.append(subprocess.Popen(["sleep", "60"]))
    if (iteration + 1) % every == 0:
        growth.sample(iteration)
end.set()
print(json.dumps([sorted(growth.leaks()), growth.slopes()]))
for child in kept if kind == "processes" else ():
    child.kill()
    child.wait()
"""


@pytest.mark.parametrize("kind", ["nothing", "memory_kb", "objects", "descriptors", "threads", "processes"])
def test_a_leak_is_found_and_work_is_none(kind):
    """One kilobyte or one object an iteration; one file, thread or process in a thousand iterations."""
    command = [sys.executable, "-c", WORK, kind, str(ITERATIONS), str(EVERY)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    leaks, slopes = json.loads(done.stdout)
    assert (kind in leaks) == (kind != "nothing"), slopes
    assert set(leaks) <= ({kind, "memory_kb"} if kind != "nothing" else set()), slopes  # all takes memory
    assert kind != "memory_kb" or slopes[kind] > 0.9


def test_a_slope_follows_the_trend_and_no_outlier():
    """Single samples that are far off do not hide a leak, and do not make one."""
    growth = Growth()
    for index in range(100):
        growth.iterations.append(10 * index)
        outlier = 5000.0 if index in (70, 99) else 0.0
        growth.samples.append({"memory_kb": 20.0 * index + outlier, "threads": 4 + (index == 99)})
    assert growth.slopes() == pytest.approx({"memory_kb": 2.0, "threads": 0.0}, abs=0.05)
    assert list(growth.leaks()) == ["memory_kb"]


def test_too_few_samples_say_nothing():
    """Two points are no slope."""
    growth = Growth()
    growth.iterations, growth.samples = [0, 9999], [{"threads": 1.0}, {"threads": 9.0}]
    with pytest.raises(ValueError, match="at least 20 are needed"):
        growth.slopes()
