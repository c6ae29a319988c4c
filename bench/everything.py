"""Every measurement there is, one after the other, a result file each.

On a GPU these are the commands whose figures `pi-bench report` asks for; on a CPU each bench with its
defaults, of which `train` meets every peer. One that fails is named, and the others go on; the exit code is
then 1.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench._gpu_figures import figures
from pi_incubator.errors import UserError

RESULTS = Path("bench/results")
ON_CPU = {
    "sim": "sim",
    "train": "train --peer all",
    "kernels": "kernels",
    "bridge": "bridge",
    "startup": "startup",
    "scaling": "scaling",
    "memory": "memory --config configs/ppo/cartpole_balance.yaml --iterations 10000 "
    "env.num_envs=16 algorithm.horizon=16 algorithm.minibatch_size=128",
}
"""File's name -> what is given to `pi-bench`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=RESULTS, help="where results go (default: %(default)s)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Measure everything; 1 where something failed.

    Raises:
        UserError: there is no such device, or the folder cannot be made.
    """
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no CUDA device; leave it out to measure the CPU")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {arguments.out}: cannot be made ({error.strerror})") from None
    failed = []
    for name, command in commands(arguments.device):
        print(f"pi-bench {shlex.join(command)}", file=sys.stderr)
        result = ["--json", str(arguments.out / f"{name}.json")]
        # Overrides may follow an option that takes many: the file is named before them.
        bench, *rest = command
        if subprocess.run([sys.executable, "-m", "bench.cli", bench, *result, *rest], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def commands(device: str) -> Iterator[tuple[str, list[str]]]:
    """Name of the result's file, and what is given to `pi-bench`."""
    if device == "cpu":
        yield from ((name, command.split()) for name, command in ON_CPU.items())
        return
    for text in dict.fromkeys(figure.command for figure in figures()):
        _, *command = shlex.split(text)
        at = command.index("--json")
        yield Path(command[at + 1]).stem, command[:at] + command[at + 2 :]
