"""What all sections of an experiment file share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Rules shared by every section."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def cross_field_error(**context: Any) -> PydanticCustomError:
    """The error of a value that does not go with another: `field`, `value`, `problem` and `fix`."""
    return PydanticCustomError("cross_field", "{field} = {value}: {problem}; {fix}", context)
