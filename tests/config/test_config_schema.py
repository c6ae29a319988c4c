"""Every field is documented, and the schema that editors read is the one the models give."""

from __future__ import annotations

import pytest

from pi_incubator.config.errors import FIELDS, SECTIONS
from pi_incubator.config.models import UNIONS, ExperimentConfig
from pi_incubator.config.schema import SCHEMA_PATH, schema_text


def test_schema_is_current() -> None:
    current = SCHEMA_PATH.read_text(encoding="utf-8") == schema_text()
    assert current, "run `python -m pi_incubator.config.schema`"


@pytest.mark.parametrize("name", [*SECTIONS, *FIELDS])
def test_every_section_and_field_has_a_one_line_docstring(name: str) -> None:
    section, _, key = name.partition(".")
    infos = [ExperimentConfig.model_fields[section]]
    if key:
        kinds = UNIONS[section].members.values() if section in UNIONS else [type(infos[0].default)]
        infos = [kind.fields_by_key()[key] for kind in kinds if key in kind.fields_by_key()]
    assert infos
    for info in infos:
        assert info.description, f"{name} has no docstring"
        assert "\n" not in info.description
