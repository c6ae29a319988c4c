"""A registry: a dict of names that fills itself from one package, one file an entry.

Standard library only, so that listing names never loads a simulator.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

Entry = TypeVar("Entry")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, letter case aside; None when nothing is close."""
    folded = {candidate.casefold(): candidate for candidate in known}
    matches = get_close_matches(name.casefold(), folded, n=1)
    return folded[matches[0]] if matches else None


class UnknownNameError(ValueError):
    """A name that no entry carries. `suggestion` is the nearest known name, or None."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        self.kind, self.name, self.known = kind, name, known
        self.suggestion = nearest(name, known)
        super().__init__(f"unknown {kind} {name!r}; {self.fix}")

    @property
    def fix(self) -> str:
        """What to write instead, in one sentence."""
        hint = f"did you mean {self.suggestion!r}? " if self.suggestion else ""
        return f"{hint}known: {', '.join(self.known) or 'none'}"


class Registry:
    """Entries of one kind, each in the file `package/<name>.py` or registered at run time.

    Files that start with `_` and those named in `exclude` are helpers, not entries.
    """

    def __init__(self, kind: str, package: str, exclude: Iterable[str] = ()) -> None:
        self.kind = kind
        self.package = package
        self._exclude = frozenset(exclude)
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that files a class or function under `name`.

        Raises:
            ValueError: `name` is taken, by an entry or by a file that is not the one being imported.
        """

        def add(entry: Entry) -> Entry:
            shadows_file = name in self._file_names() and self._module(name) not in sys.modules
            if name in self._entries or shadows_file:
                raise ValueError(f"{self.kind} {name!r} is registered twice; rename one of the two")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """Every available name, sorted; imports none of the entries."""
        return sorted(self._file_names() | self._entries.keys())

    def get(self, name: str) -> Any:
        """The entry called `name`, importing its file on first use.

        Raises:
            UnknownNameError: no such entry.
            ImportError: its file cannot be imported, or does not register `name`.
        """
        if name not in self._entries:
            if name not in self._file_names():
                raise UnknownNameError(self.kind, name, self.names())
            importlib.import_module(self._module(name))
            if name not in self._entries:
                raise ImportError(f"{self._module(name)} does not register the {self.kind} {name!r}")
        return self._entries[name]

    def _module(self, name: str) -> str:
        return f"{self.package}.{name}"

    def _file_names(self) -> set[str]:
        spec = importlib.util.find_spec(self.package)
        locations = spec.submodule_search_locations if spec else None
        stems = {module.name for module in pkgutil.iter_modules(locations or [])}
        return {stem for stem in stems if not stem.startswith("_")} - self._exclude
