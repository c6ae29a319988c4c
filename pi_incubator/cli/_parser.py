"""A command line whose mistakes are one line, like every other mistake."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from envs_gpu.registry import Registry, UnknownNameError
from pi_incubator.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake raises UserError instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def count(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    if not text.isdecimal() or not 1 <= (number := int(text)) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def positive(text: str) -> float:
    """A finite number above 0, for `type=`."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def known_names(registry: Registry, names: Sequence[str]) -> list[str]:
    """`names`, each once.

    Raises:
        UserError: the registry does not have one of them.
    """
    for name in names:
        if name not in registry.names():
            raise UserError(UnknownNameError(registry.kind, name, registry.names()))
    return list(dict.fromkeys(names))


def output_file(text: str) -> Path:
    """A path to write to, in a folder that exists, for `type=`."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in an existing folder")
    return path
