"""Typed reading of a parsed JSON object, with errors that name the file, the field and the value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import RuntimeBundleError


class Fields:
    """One JSON object of a file.

    Args:
        data: what was parsed.
        where: the file, and the path of the object inside it, for messages.
    """

    def __init__(self, data: object, where: str) -> None:
        self.where = where
        if not isinstance(data, Mapping):
            raise self.wrong("", data, "an object")
        self._data = data

    def text(self, name: str) -> str:
        """A string that is not empty, and can be printed."""
        value = self._get(name)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.wrong(name, value, "a text")
        return value

    def whole(self, name: str, low: int = 1) -> int:
        """A whole number of at least `low`."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self.wrong(name, value, f"a whole number of at least {low}")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.number_or_none(name)
        if value is None:
            raise self.wrong(name, value, "a number")
        return value

    def number_or_none(self, name: str) -> float | None:
        """A finite number, or null."""
        value = self._get(name)
        if value is not None and not is_number(value):
            raise self.wrong(name, value, "a number or null")
        return None if value is None else float(value)

    def objects(self, name: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(item, f"{self.where}{name}[{i}].") for i, item in enumerate(self._list(name))]

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        values = self._list(name)
        if not all(map(is_number, values)):
            raise self.wrong(name, values, "a list of numbers")
        return tuple(map(float, values))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings that can be printed."""
        values = self._list(name)
        if not all(isinstance(value, str) and value.isprintable() for value in values):
            raise self.wrong(name, values, "a list of texts")
        return tuple(values)

    def child(self, name: str) -> Fields:
        """An object inside this one."""
        return Fields(self._get(name), f"{self.where}{name}.")

    def objects_by_name(self, name: str) -> dict[str, Fields]:
        """An object of objects; a missing one is empty."""
        items = Fields(self._data.get(name, {}), f"{self.where}{name}.")._data
        return {key: Fields(item, f"{self.where}{name}.{key}.") for key, item in items.items()}

    def wrong(self, name: str, value: object, expected: str) -> RuntimeBundleError:
        """The error that says that field `name` is not as `expected`."""
        field = f"{self.where}{name}".rstrip(".: ")
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return RuntimeBundleError(f"{field}: {shown} is not {expected}; export the policy again")

    def _get(self, name: str) -> Any:
        if name not in self._data:
            raise RuntimeBundleError(f"{self.where}{name}: missing; export the policy again")
        return self._data[name]

    def _list(self, name: str) -> Sequence[Any]:
        value = self._get(name)
        if not isinstance(value, list):
            raise self.wrong(name, value, "a list")
        return value


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False
