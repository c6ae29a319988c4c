"""`make mutants` counts right: what it cannot test is no kill, and a reason holds for one mutant only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation import report

ROOT = Path(__file__).parents[1]
IS_NOTICED = """
import sys
from pathlib import Path
from tests.mutation.worker import _is_noticed, _Killer
print("noticed:", _is_noticed(sys.argv[1:], _Killer(Path("killer.txt"))))
"""


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("def test_it(): pass", "noticed: False"),
        ("def test_it(): raise ValueError", "noticed: True"),
        ("import no_such_module", "noticed: True"),
        ("def test_another(): pass", "RuntimeError: pytest ended with <ExitCode.USAGE_ERROR: 4>"),
    ],
    ids=["passes", "fails", "cannot be imported", "is not there"],
)
def test_a_test_that_is_not_there_is_no_kill(tmp_path, monkeypatch, source, answer):
    (tmp_path / "test_file.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as `warm_up` does
    command = [sys.executable, "-c", IS_NOTICED, "test_file.py::test_it"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer in ended.stdout + ended.stderr


def test_a_reason_holds_for_one_of_several_such_mutants(tmp_path, monkeypatch):
    reasons = tmp_path / "survivors.txt"
    reasons.write_text("# a comment\na.py | x = 1 + 1 | 1 -> 2 | why\na.py | x = 1 + 1 | 1 -> 2 #3 | why\n")
    monkeypatch.setattr(report, "REASONS", reasons)
    assert [report.is_explained(("a.py", "x = 1 + 1", "1 -> 2", nth)) for nth in range(3)] == [
        True,
        False,
        True,
    ]


def test_timeouts_have_a_column_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("x = 1\ny = 1\nz = 1\n")
    results = [
        {"file": "a.py", "line": line, "source_line": f"{name} = 1", "mutant": "1 -> 2", "nth": 0}
        | {"outcome": outcome}
        for line, (name, outcome) in enumerate([("x", "killed"), ("y", "timeout"), ("z", "survived")], 1)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    assert report.print_report(tmp_path / "results.jsonl", []) == 1
    printed = capsys.readouterr().out
    assert "survived a.py:3 | z = 1 | 1 -> 2" in printed
    assert printed.splitlines()[-2].replace("│", "").split() == ["all", "3", "1", "1", "1", "0", "66.7", "%"]
