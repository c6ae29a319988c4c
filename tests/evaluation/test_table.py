"""Numbers as people and as programs read them."""

import json
import re

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
        (float("-inf"), "-inf"),
        (999.9, "999.9"),
        (1000.0, "1,000"),
        (99.99, "99.99"),
        (100.0, "100.0"),
        (1e-3, "0.001"),
        (9.99e-4, "0.000999"),
        (-1.2e-5, "-1.2e-05"),
        (123456.7, "123,457"),
        (999999999.0, "999,999,999"),
        (1e9, "1e+09"),
        (-2.5e9, "-2.5e+09"),
    ],
)
def test_show(value, text):
    assert show(value) == text


def test_the_table_shows_every_row_and_column(capsys):
    """Words are shown as they are: rich would read some as markup or as emoji."""
    rows = {"return": {"mean": 1.5, "max": 2}, "[length]": {"mean": 3, "note": "[bold] :smile:"}}
    print_table(rows, title="Ant")
    shown = capsys.readouterr().out
    for word in ("Ant", "return", "[length]", "mean", "max", "note", "1.500", "[bold] :smile:"):
        assert word in shown


def test_columns_are_in_the_order_of_their_first_row_and_numbers_end_alike(capsys):
    """A value that a row lacks is empty; numbers are on the right, words on the left."""
    name = "a/very/long/name/" * 5
    print_table({name: {"b": 1, "a": "x"}, "short": {"a": "yyyy", "b": 12345, "c": True}}, first_column="row")
    shown = capsys.readouterr().out
    head, first, second = [line for line in shown.splitlines() if any(c.isalpha() for c in line)]
    cells = [[cell.strip("\n") for cell in re.split("[│┃]", line)[1:-1]] for line in (head, first, second)]
    assert [cell.strip() for cell in cells[0]] == ["row", "b", "a", "c"]
    assert [cell.strip() for cell in cells[1]] == [name, "1", "x", ""]
    assert [cell.strip() for cell in cells[2]] == ["short", "12,345", "yyyy", "True"]
    assert cells[1][1].endswith(" 1 ")
    assert cells[1][2].startswith(" x ")


def test_json_has_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "numbers.json"
    write_json({"return": {"mean": float("nan"), "max": 1.0}, "all": (1, float("inf")), "is": [True]}, path)
    expected = {"return": {"mean": None, "max": 1.0}, "all": [1, None], "is": [True]}
    assert json.loads(path.read_text()) == expected


def test_json_is_written_into_new_folders_and_over_old_files(tmp_path):
    """For people too: one value a line."""
    path = tmp_path / "a" / "b" / "numbers.json"
    for number in (1, 2):
        write_json({"x": number, "y": [number]}, str(path))
        assert json.loads(path.read_text()) == {"x": number, "y": [number]}
    assert path.read_text() == '{\n  "x": 2,\n  "y": [\n    2\n  ]\n}\n'


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_json({}, tmp_path / "file" / "numbers.json")
