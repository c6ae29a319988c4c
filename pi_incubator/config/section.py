"""What all sections of an experiment file share: strictness, and the types of their fields."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

LARGEST = 1e15
"""Bound on every number: the square of it, and sums of a few, are still finite in float32."""
LONGEST_S = 1e9
"""Bound on times, 32 years: their number of simulation steps is a 64-bit integer."""
MAX_LAYERS = 64
MAX_NAME_BYTES = 255
"""Of a file or folder on Linux and macOS."""

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
# What is held in memory or waited for, one by one.
SmallCount = Annotated[int, Field(ge=1, le=1_000_000)]
# A file gives a list, which is not a tuple: the outer type is lenient, each size stays a strict integer.
Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1, le=2**16)], ...],
    Field(strict=False, min_length=1, max_length=MAX_LAYERS),
]
Threads = Annotated[int, Field(ge=0, le=1024)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _pair(value: Any) -> Any:
    """`value`, if it has two entries, whatever they are."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return value
    raise _text_error("must be a list of two numbers", "write [low, high], for example [-1, 1]")


def _mapping_of_ranges(value: Any) -> Any:
    """`value`, if it is a mapping, of whatever."""
    if isinstance(value, dict):
        return value
    raise _text_error("must be a mapping", "write {NAME: [low, high]}, for example {knee: [-1, 1]}")


def _file_system_text(text: str) -> str:
    """`text`, which a path may consist of."""
    if "\0" in text:
        raise _text_error("holds the character NUL, which no path can have", "leave it out")
    return text


def _folder_name(text: str) -> str:
    """`text`, which one folder can be called."""
    if "/" in text:
        fix = "leave it out; experiment.output_dir says in which folder the run's folder is"
        raise _text_error("holds '/', which no name of a folder can have", fix)
    if text in (os.curdir, os.pardir):
        raise _text_error("names another folder, not one of this run", "set a name")
    if (size := len(os.fsencode(text))) > MAX_NAME_BYTES:
        raise _text_error(f"has {size} bytes, a folder's name at most {MAX_NAME_BYTES}", "shorten it")
    return text


def _text_error(problem: str, fix: str) -> PydanticCustomError:
    return PydanticCustomError("text", "{problem}; {fix}", {"problem": problem, "fix": fix})


Name = Annotated[str, Field(min_length=1), AfterValidator(_file_system_text)]
# A file gives a list, which is not a tuple.
Range = Annotated[tuple[Number, Number], Field(strict=False), BeforeValidator(_pair)]
Ranges = Annotated[dict[str, Range], BeforeValidator(_mapping_of_ranges)]
FolderName = Annotated[Name, AfterValidator(_folder_name)]
"""Any name that a folder can have."""


class Section(BaseModel):
    """Rules shared by every section. A key that is a word of Python, such as `from`, is a field's alias."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )

    @classmethod
    def fields_by_key(cls) -> dict[str, FieldInfo]:
        """The fields by the keys that a file has for them."""
        return {info.alias or name: info for name, info in cls.model_fields.items()}


def choices(annotation: Any) -> Iterator[Any]:
    """The types that a value of `annotation` may have: those of `A | B`, without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        yield from choices(get_args(annotation)[0])
    elif get_origin(annotation) in (UnionType, Union):
        for argument in get_args(annotation):
            yield from choices(argument)
    else:
        yield annotation


def fields_within(kind: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, type) for every field of `kind`, called `prefix`, and for those within it."""
    for name, info in kind.model_fields.items():
        key = info.alias or name
        yield f"{prefix}.{key}", info.annotation
        for choice in choices(info.annotation):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                yield from fields_within(choice, f"{prefix}.{key}")


def is_mapping(annotation: Any) -> bool:
    """Whether values of this type, or of one of its choices, are mappings of fields."""
    return any(
        get_origin(choice) is dict or (isinstance(choice, type) and issubclass(choice, BaseModel))
        for choice in choices(annotation)
    )


def is_text(annotation: Any) -> bool:
    """Whether values of this type are any text, or null."""
    return set(choices(annotation)) - {type(None)} == {str}


def cross_field_error(**context: Any) -> PydanticCustomError:
    """The error of a value that does not go with another: `field`, `value`, `problem` and `fix`."""
    return PydanticCustomError("cross_field", "{field} = {value}: {problem}; {fix}", context)
