"""A place to break runs in: a folder of its own, and our commands as processes in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240.0
SMALL = """
env: {name: cartpole_balance, num_envs: 8}
algorithm: {horizon: 32, minibatch_size: 64, num_epochs: 2, lr_schedule: constant}
training: {total_steps: 1536, log_every: 1}
compute: {compile: "off", device: cpu, physics_threads: 1}
evaluation: {num_episodes: 1, video: false, video_length_s: 0.2}
checkpoint: {save_every: 2, keep: 3}
tracking: {backend: none}
deployment: {num_check_observations: 50}
"""
"""Six iterations, saved after every second one."""


@dataclass
class Ended:
    """A process that has ended."""

    code: int
    output: str
    """What it printed, errors included."""
    took_s: float

    @property
    def errors(self) -> list[str]:
        """The lines that say what a user did wrong."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def verdict(self) -> str:
        """`exit CODE`, and whether it was explained in one line or in a traceback."""
        if "Traceback" in self.output:
            return f"exit {self.code}, traceback"
        return f"exit {self.code}, one line" if len(self.errors) == 1 else f"exit {self.code}"


class Lab:
    """Runs commands in `folder`.

    Args:
        folder: empty; holds `runs` and whatever a fault needs.
    """

    references: ClassVar[dict[tuple[str, ...], str]] = {}
    """Settings -> the hash that an uninterrupted run ends with."""
    _lock: ClassVar = threading.Lock()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "small.yaml"
        self.config.write_text(SMALL)
        self.run = folder / "runs" / "run"
        """The run folder that `train` writes."""

    def command(self, module: str, *arguments: object) -> list[str]:
        """The command line of one of our commands, such as `eval`."""
        return [sys.executable, "-m", f"pi_incubator.cli.{module}", *map(str, arguments)]

    def train_command(self, *settings: str) -> list[str]:
        """The command line of a small training."""
        place = [f"experiment.output_dir={self.folder / 'runs'}", "experiment.name=run"]
        return self.command("train", "--config", self.config, *place, *settings)

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        """Start a process; its output is kept in a file, so that it never waits for a reader."""
        variables = {"PYTHONPATH": str(ROOT), "RL_WARNINGS": "0", "OMP_NUM_THREADS": "1"}
        with (self.folder / f"output_{time.monotonic_ns()}").open("w+") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | variables | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        process.log = Path(file.name)  # type: ignore[attr-defined]
        process.began_s = time.monotonic()  # type: ignore[attr-defined]
        return process

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for a process; one that does not end is killed, and its code is -9."""
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        took_s = time.monotonic() - process.began_s  # type: ignore[attr-defined]
        return Ended(process.returncode, process.log.read_text(errors="replace"), took_s)  # type: ignore[attr-defined]

    def call(self, command: list[str], **environment: str) -> Ended:
        """Run a command to its end."""
        return self.end(self.start(command, **environment))

    def train(self, *settings: str, fault: str = "", **environment: str) -> Ended:
        """Run a small training to its end, with a fault."""
        return self.call(self.train_command(*settings), PI_FAULT=fault, **environment)

    def saved(self) -> list[Path]:
        """The run's checkpoints, oldest first."""
        return sorted(self.run.glob("checkpoints/iter_????????"))

    def hash(self) -> str:
        """Of everything in the newest checkpoint but its manifest, which knows the settings."""
        total = hashlib.sha256()
        for file in sorted(self.saved()[-1].glob("*.safetensors")):
            total.update(file.name.encode() + file.read_bytes())
        return total.hexdigest()

    def launched(self, *settings: str, max_restarts: int = 0) -> list[str]:
        """The command line of a small training on two ranks."""
        options = ["--standalone", "--nproc-per-node=2", f"--max-restarts={max_restarts}"]
        _, *command = self.train_command(*settings)
        return [sys.executable, "-m", "torch.distributed.run", *options, *command]

    def uninterrupted(self, *settings: str, ranks: int = 1) -> str:
        """The hash of a run of the same settings without faults; trained once."""
        key = (str(ranks), *settings)
        with self._lock:
            if key not in self.references:
                folder = self.folder / f"reference_{len(self.references)}"
                folder.mkdir()
                lab = Lab(folder)
                ended = lab.call(lab.train_command(*settings) if ranks == 1 else lab.launched(*settings))
                assert ended.code == 0, ended.output[-2000:]
                self.references[key] = lab.hash()
            return self.references[key]

    def continued(self, *settings: str) -> str:
        """Continue the run without faults, and compare its end with that of an uninterrupted one."""
        ended = self.train(*settings)
        if ended.code:
            return f"continuing: {ended.verdict}"
        return "same hash" if self.hash() == self.uninterrupted(*settings) else "another hash"

    def wait_for(self, pattern: str, process: subprocess.Popen[str]) -> None:
        """Wait until the run folder has a file like this, or the process has ended."""
        while not list(self.run.glob(pattern)) and process.poll() is None:
            time.sleep(0.02)

    def wait_for_output(self, text: str, process: subprocess.Popen[str]) -> None:
        """Wait until a process has printed `text`, or has ended."""
        while text not in process.log.read_text(errors="replace") and process.poll() is None:  # type: ignore[attr-defined]
            time.sleep(0.05)

    def finished_run(self) -> Path:
        """A copy of a finished run, which is trained once for all faults."""
        shared = self.folder.parent / "finished"
        with self._lock:
            if not shared.exists():
                shared.mkdir()
                lab = Lab(shared)
                ended = lab.train()
                assert ended.code == 0, ended.output[-2000:]
        shutil.copytree(shared / "runs", self.folder / "runs")
        return self.run

    def bundle(self) -> Path:
        """A bundle of a finished run, exported once for all faults."""
        run = self.finished_run()
        shared = self.folder.parent / "bundle"
        with self._lock:
            if not shared.exists():
                ended = self.call(self.command("export", run, "--episodes", 1, "--out", shared))
                assert ended.code == 0, ended.output[-2000:]
        return Path(shutil.copytree(shared, self.folder / "bundle"))


def flip_bit(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    """Leave the first half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def fix_manifest(checkpoint: Path) -> None:
    """Let the manifest say that the files of a checkpoint are as they should be."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


class EvilPickle:
    """Unpickling this makes a file: whoever does has run foreign code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.trace), "w")


def signal_of(code: int) -> str:
    """The signal behind an exit code, as a shell or Popen gives it."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number).name if number in signal.valid_signals() else "none"
