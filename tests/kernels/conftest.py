"""The implementations that this process can run, and memory that shows what a kernel left unwritten."""

import os

import pytest
import torch

# The interpreter replaces Triton's kernels as they are imported: a process has either them or the compiled
# ones. test_triton.py runs the tests of this folder once more under it.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Which starts that run and compiles the kernels, and so has no place in it.
collect_ignore = ["test_triton.py"] if INTERPRETED else []
ON_HARDWARE = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


COMPILED = ["cpu", pytest.param("triton", marks=[] if INTERPRETED else ON_HARDWARE)]


def pytest_generate_tests(metafunc):
    """Every implementation, or with the mark `compiled` those that are operators of torch."""
    marks = metafunc.definition.iter_markers("parametrize")
    own = {
        name for mark in marks for name in ([mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0])
    }
    if "implementation" in metafunc.fixturenames and "implementation" not in own:
        only_compiled = metafunc.definition.get_closest_marker("compiled")
        chosen = COMPILED if only_compiled else ["reference", *COMPILED]
        metafunc.parametrize("implementation", chosen)


@pytest.fixture
def device(implementation):
    return "cuda" if implementation == "triton" and not INTERPRETED else "cpu"


@pytest.fixture
def poisoned_memory():
    """torch.empty is filled with NaN: an output that a kernel does not write stays one."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(before)
