"""What torchrun, or another launcher, told this process about the processes that train together."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pi_incubator.errors import UserError

MAX_PROCESSES = 2**20
FIX = "start the processes with torchrun, or unset it"


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among those on this machine."""
    local_world_size: int = 1


def launch_of_environment() -> Launch:
    """What the environment variables say; one process without any.

    Raises:
        UserError: one of them is no whole number, is missing, or does not fit the others.
    """
    world_size = _number("WORLD_SIZE", 1, 1, MAX_PROCESSES)
    if world_size == 1:
        _number("RANK", 0, 0, 0)
        return Launch()
    local_world_size = _number("LOCAL_WORLD_SIZE", None, 1, world_size)
    rank = _number("RANK", None, 0, world_size - 1)
    local_rank = _number("LOCAL_RANK", None, 0, local_world_size - 1)
    _number("MASTER_PORT", None, 0, 65_535)
    if not os.environ.get("MASTER_ADDR"):
        raise UserError(f"environment variable MASTER_ADDR: is missing beside WORLD_SIZE; {FIX}")
    return Launch(rank, world_size, local_rank, local_world_size)


def is_launched() -> bool:
    """Whether a launcher started this process as one of the ranks of a training."""
    return "WORLD_SIZE" in os.environ


def rank_of_environment() -> int:
    """The rank that a launcher gave this process; 0 without one.

    Raises:
        UserError: as `launch_of_environment`.
    """
    return launch_of_environment().rank


def _number(name: str, default: int | None, least: int, most: int) -> int:
    """The environment variable `name`, a whole number; `default` where it is not set, None if it must be."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise UserError(f"environment variable {name}: is missing beside WORLD_SIZE; {FIX}")
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        wanted = f"{least}" if least == most else f"a whole number from {least} to {most}"
        raise UserError(f"environment variable {name} = {text!r}: must be {wanted}; {FIX}")
    return int(text)
