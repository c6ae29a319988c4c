"""The implementations that can run here, and memory that shows what a kernel left unwritten."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICES = {
    "reference": "cpu",
    "cpu": "cpu",
    "triton": "cpu" if INTERPRETED else "cuda",
}


def pytest_collection_modifyitems(items):
    """Triton's interpreter replaces the kernels at import: a process has either them or the compiled ones."""
    for item in items:
        if getattr(item, "callspec", None) and item.callspec.params.get("implementation") == "triton":
            if not INTERPRETED:
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def poisoned_memory():
    """torch.empty is filled with NaN, so an output that was not written is one."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
