"""Output that cannot be written loses characters, and never ends a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from pi_incubator.cli._main import run
from pi_incubator.evaluation.table import print_table

def main(argv):
    print("return 3 \\u00b1 1")
    print_table({"return": {"mean": 3.0}}, title="\\u00b1")
    print("a warning \\u00b1", file=sys.stderr)
    for _ in range(20_000):
        print("a line of a long training")
    Path(argv[0]).write_text("done")

run(main, sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("target", "environment"),
    [
        ("> output", {"LANG": "C", "PYTHONIOENCODING": "ascii"}),
        ("| head -1 > output", {}),
        ("2>&1 | head -1 > output", {"PYTHONUNBUFFERED": "1"}),
        ("> /dev/full 2>&1", {}),
        (">&- 2>&-", {}),
    ],
)
def test_the_command_goes_on(tmp_path, target, environment):
    script = f"'{sys.executable}' -c \"$SCRIPT\" done {target}; exit ${{PIPESTATUS[0]}}"
    variables = os.environ | {"PYTHONPATH": str(ROOT), "SCRIPT": SCRIPT} | environment
    ended = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "done").read_text() == "done"
    if "output" in target:
        assert (tmp_path / "output").read_text(encoding="utf-8").startswith("return 3 ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "OSError(28, 'No space left on device', '/x/y')",
            "error: /x/y: No space left on device; free some space",
        ),
        ("OSError(30, 'Read-only file system', '/x')", "error: /x: Read-only file system; name a folder"),
        (
            "PermissionError(13, 'Permission denied', '/x')",
            "error: /x: Permission denied; check the permissions",
        ),
    ],
)
def test_a_machine_that_refuses_is_one_line(error, said):
    script = f"from pi_incubator.cli._main import run\ndef main(argv): raise {error}\nrun(main, [])"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == 1
