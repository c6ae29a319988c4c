"""A command line whose mistakes are one line, like every other mistake."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from envs_gpu.registry import Registry, UnknownNameError
from pi_incubator.errors import UserError

DOTTED_OPTION = re.compile(r"--(\w+(?:\.\w+)+)")
"""A setting that was written like an option."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake raises UserError instead of printing the usage.

    `--section.key=value` counts as `section.key=value`; no option has a point in its name.
    """

    def parse_known_args(  # type: ignore[override]  # argparse declares overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([_as_override(text) for text in given], namespace)

    def error(self, message: str) -> NoReturn:
        hint = ""
        if match := DOTTED_OPTION.search(message):
            hint = f"; write a setting as {match[1]}=VALUE, in one word"
        elif "expected" in message or "required" in message or "unrecognized" in message:
            hint = "; a name that begins with '-' is written --option=NAME or ./NAME"
        raise UserError(f"{message}{hint}; see {self.prog} --help")


def _as_override(text: str) -> str:
    """`--section.key=value` without the dashes; any other argument as it is."""
    name, equals, _ = text.partition("=")
    is_override = equals and name.startswith("--") and re.fullmatch(r"--\w+(\.\w+)+", name)
    return text.removeprefix("--") if is_override else text


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
    # os.path takes a name that is too long for one that is not there.
    if not path.name or os.path.isdir(path) or not os.path.isdir(path.parent):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in an existing folder")
    return path
