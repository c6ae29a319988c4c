"""Kill trainings at random moments: each continues to the same bits as one that was not interrupted.

python -m tests.faults.kills ppo 100
python -m tests.faults.kills sac 30

Every training is a fork of this process, which has imported everything, so that a kill costs a second.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from pi_incubator.run import run
from pi_incubator.run_paths import RunFolder

CONFIG = Path(__file__).parents[2] / "configs" / "ppo" / "cartpole_balance.yaml"
SETTINGS = [
    *("env.num_envs=8", "network.hidden_sizes=[16]", "training.log_every=1", "tracking.backend=none"),
    *("compute.compile=off", "compute.device=cpu", "compute.physics_threads=1", "checkpoint.save_every=1"),
    *(
        "evaluation.num_episodes=1",
        "evaluation.video=false",
        "deployment.export=none",
        "evaluation.curve=false",
    ),
]
ALGORITHMS = {
    "ppo": ["algorithm.horizon=32", "algorithm.minibatch_size=64", "training.total_steps=5120"],
    "sac": [
        *(
            "algorithm.name=sac",
            "algorithm.horizon=4",
            "algorithm.batch_size=32",
            "algorithm.buffer_size=512",
        ),
        *("algorithm.buffer_size=512", "algorithm.learning_starts=64", "algorithm.updates_per_step=0.25"),
        "training.total_steps=1280",
    ],
}


def start(folder: Path, algorithm: str) -> int:
    """Start or continue the training in `folder`; returns its process."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with (folder.parent / f"{folder.name}.txt").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            place = [f"experiment.output_dir={folder.parent}", f"experiment.name={folder.name}"]
            run(CONFIG, [*SETTINGS, *ALGORITHMS[algorithm], *place])
        code = 0
    finally:
        os._exit(code)


def last_hash(folder: Path) -> str:
    """The SHA-256 of all tensors of the newest checkpoint."""
    total = hashlib.sha256()
    for file in sorted(RunFolder(folder).saved()[-1].glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            total.update(f"{file.name} {name}".encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def kill_and_continue(folder: Path, algorithm: str, delay_s: float) -> str:
    """Kill a training after `delay_s`, continue it to its end, and give the hash that it ends with."""
    process = start(folder, algorithm)
    time.sleep(delay_s)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    _, status = os.waitpid(start(folder, algorithm), 0)
    return last_hash(folder) if status == 0 else f"exit code {os.waitstatus_to_exitcode(status)}"


def count_equal(algorithm: str, number: int, folder: Path) -> int:
    """How many of `number` trainings end like an uninterrupted one."""
    began_s = time.monotonic()
    os.waitpid(start(folder / "whole", algorithm), 0)
    whole_s, expected = time.monotonic() - began_s, last_hash(folder / "whole")
    random_moment, equal = random.Random(0), 0
    for index in range(number):
        delay_s = random_moment.uniform(0.0, whole_s)
        seen = kill_and_continue(folder / f"{index}", algorithm, delay_s)
        equal += seen == expected
        if seen != expected:
            print(f"killed after {delay_s:.3f} s: {seen}", flush=True)
    return equal


def main(algorithm: str, number: str) -> int:
    """Print how many ended alike; the exit code is 1 if one did not."""
    with tempfile.TemporaryDirectory(prefix="kills_") as folder:
        equal = count_equal(algorithm, int(number), Path(folder))
    print(f"{algorithm}: {equal} of {number} killed trainings ended with the bits of an uninterrupted one")
    return int(equal != int(number))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
