"""Every field is documented, and the schema that editors read is the one the models give."""

from __future__ import annotations

import pytest

from pi_incubator.config.errors import FIELDS, SECTIONS
from pi_incubator.config.models import ExperimentConfig
from pi_incubator.config.schema import SCHEMA_PATH, schema_text


def test_schema_is_current() -> None:
    current = SCHEMA_PATH.read_text(encoding="utf-8") == schema_text()
    assert current, "run `python -m pi_incubator.config.schema`"


@pytest.mark.parametrize("name", [*SECTIONS, *FIELDS])
def test_every_section_and_field_has_a_one_line_docstring(name: str) -> None:
    section, _, key = name.partition(".")
    info = ExperimentConfig.model_fields[section]
    if key:
        info = type(info.default).model_fields[key]
    assert info.description, f"{name} has no docstring"
    assert "\n" not in info.description
