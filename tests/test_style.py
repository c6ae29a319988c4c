"""What the design pins that no linter knows."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lines_with(pattern, *folders):
    """`FILE: LINE` of every line of source that matches."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    return [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]


def test_there_is_one_training_loop():
    (loop,) = lines_with(r"for iteration in range", "pi_incubator", "bench")
    assert loop.startswith("pi_incubator/loop.py: ")


def test_nobody_asks_whether_a_policy_has_a_state():
    """Every policy carries one; its width may be 0."""
    assert lines_with(r"isinstance\(.*Stateful", "pi_incubator", "bench", "envs_gpu", "kernels") == []
