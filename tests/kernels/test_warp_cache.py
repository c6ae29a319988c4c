"""Kernels are compiled wherever there is room, and run uncompiled where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import torch
from kernels import dispatch
from kernels.gae import gae

ones = torch.ones(3, 2)
off = torch.zeros(3, 2, dtype=torch.bool)
print(gae(ones, ones, ones, off, off, 0.9, 0.9)[0].shape)
print(dispatch.load("gae", "auto", "cpu", torch.float32).__name__)
"""


@pytest.mark.parametrize(
    ("temporary", "module", "warning"),
    [
        (
            "",
            "kernels.gae.cpu",
            "kernels are compiled anew, because Warp's cache /proc/nowhere/warp cannot be",
        ),
        ("/proc/nowhere", "kernels.gae.reference", "kernels run uncompiled: there is no folder"),
    ],
)
def test_a_home_that_cannot_be_written_costs_one_sentence(tmp_path, temporary, module, warning):
    nowhere = {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "PYTHONPATH": str(ROOT)}
    blocked = "import tempfile; tempfile.tempdir = '/proc/nowhere'" if temporary else ""
    environment = {**os.environ, **nowhere, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", blocked + SCRIPT]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == module
    (line,) = ended.stderr.splitlines()
    assert line.startswith(warning)
    assert list(tmp_path.iterdir()) == []
