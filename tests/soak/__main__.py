"""`make soak`: 10,000 iterations of training hold no more memory, files and threads than 3,000.

python -m tests.soak ppo
python -m tests.soak sac --iterations 10000
python -m tests.soak ppo --leak-bytes 1024       # must be found: the exit code is 1

Worlds and network are tiny, so that an iteration takes milliseconds. The run evaluates, saves and logs
to MLflow all the time. A hook samples what the process holds; `growth` says what counts as a leak.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from pi_incubator import run
from pi_incubator.hooks.hook import Hook, Progress
from tests.soak.growth import LIMITS, Growth

CONFIG = Path(__file__).parents[2] / "configs" / "ppo" / "cartpole_balance.yaml"
SETTINGS = [
    *("env.num_envs=8", "network.hidden_sizes=[8]", "training.log_every=10"),
    *("compute.compile=off", "compute.device=cpu", "compute.physics_threads=1"),
    *("checkpoint.save_every=20", "checkpoint.keep=2", "evaluation.every=250", "evaluation.num_episodes=2"),
    *("evaluation.video=false", "deployment.export=none", "evaluation.curve=false"),
]
STEPS = 4
"""Of every world in an iteration."""
ALGORITHMS = {
    "ppo": [f"algorithm.horizon={STEPS}", "algorithm.minibatch_size=32", "algorithm.num_epochs=1"],
    "sac": [
        *("algorithm.name=sac", f"algorithm.horizon={STEPS}", "algorithm.batch_size=32"),
        *("algorithm.buffer_size=4096", "algorithm.learning_starts=256", "algorithm.updates_per_step=0.0625"),
    ],
}
SAMPLES = 100


class Meter(Hook):
    """Samples what the process holds, `SAMPLES` times in a training.

    Args:
        iterations: of the training.
        leak_bytes: how much it leaks itself in every iteration, to show that this is found.
    """

    def __init__(self, iterations: int, leak_bytes: int = 0) -> None:
        self.growth, self._every = Growth(), max(1, iterations // SAMPLES)
        self._leak_bytes, self._leaked = leak_bytes, []

    def due(self, progress: Progress) -> bool:
        return True

    def __call__(self, progress: Progress) -> None:
        if self._leak_bytes:
            self._leaked.append(bytearray(self._leak_bytes))
        if (progress.iteration + 1) % self._every == 0:
            self.growth.sample(progress.iteration)


def soak(algorithm: str, iterations: int, folder: Path, leak_bytes: int = 0) -> Growth:
    """Train, and give what was sampled."""
    meter = Meter(iterations, leak_bytes)
    total = ["training.total_steps=" + str(8 * STEPS * iterations)]
    place = [f"experiment.output_dir={folder}", f"experiment.name={algorithm}"]
    run(CONFIG, [*SETTINGS, *ALGORITHMS[algorithm], *total, *place], hooks=[meter])
    return meter.growth


def main() -> int:
    """Soak one algorithm and print slopes; returns 1 if something grows."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("algorithm", choices=sorted(ALGORITHMS))
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--leak-bytes", type=int, default=0, help="leak on purpose in every iteration")
    parser.add_argument("--samples", type=Path, help="write all samples to this file, as JSON")
    options = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        growth = soak(options.algorithm, options.iterations, Path(folder), options.leak_bytes)
    if options.samples:
        rows = [{"iteration": at} | held for at, held in zip(growth.iterations, growth.samples, strict=True)]
        options.samples.write_text(json.dumps(rows) + "\n")
    leaks = growth.leaks()
    print(f"{options.algorithm}: {options.iterations} iterations in {time.monotonic() - began_s:.0f} s")
    for name, slope in growth.slopes().items():
        verdict = "GROWS" if name in leaks else "flat"
        first, last = growth.samples[0][name], growth.samples[-1][name]
        print(f"{name:12s} {first:10.0f} -> {last:10.0f}   {slope:+.5f} an iteration", end="   ")
        print(f"limit {LIMITS[name]:g}   {verdict}")
    return int(bool(leaks))


if __name__ == "__main__":
    sys.exit(main())
