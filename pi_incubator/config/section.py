"""What all sections of an experiment file share: strictness, and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
# A file gives a list, which is not a tuple: the outer type is lenient, each size stays a strict integer.
Sizes = Annotated[tuple[Annotated[int, Field(ge=1, le=2**16)], ...], Field(strict=False, min_length=1)]
Threads = Annotated[int, Field(ge=0, le=1024)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]


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


def holds_fields(annotation: Any) -> bool:
    """Whether values of this type, or of one of its choices, are mappings of fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return get_origin(annotation) is dict or any(map(holds_fields, get_args(annotation)))


def cross_field_error(**context: Any) -> PydanticCustomError:
    """The error of a value that does not go with another: `field`, `value`, `problem` and `fix`."""
    return PydanticCustomError("cross_field", "{field} = {value}: {problem}; {fix}", context)
