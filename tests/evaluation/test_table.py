"""Numbers as people and as programs read them."""

import json

import pytest

from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table, show, write_json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "True"),
        ("mujoco", "mujoco"),
        (1234567, "1,234,567"),
        (1234.56, "1,235"),
        (12.345678, "12.35"),
        (-0.5, "-0.500"),
        (1.2e-5, "1.2e-05"),
        (0.0, "0"),
        (float("nan"), "nan"),
    ],
)
def test_show(value, text):
    assert show(value) == text


def test_the_table_shows_every_row_and_column(capsys):
    print_table({"return": {"mean": 1.5, "max": 2}, "[length]": {"mean": 3, "note": "[bold]"}}, title="Ant")
    shown = capsys.readouterr().out
    assert all(
        word in shown for word in ("Ant", "return", "[length]", "mean", "max", "note", "1.500", "[bold]")
    )


def test_json_has_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "numbers.json"
    write_json({"return": {"mean": float("nan"), "max": 1.0}, "all": (1, float("inf"))}, path)
    assert json.loads(path.read_text()) == {"return": {"mean": None, "max": 1.0}, "all": [1, None]}


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_json({}, tmp_path / "file" / "numbers.json")
