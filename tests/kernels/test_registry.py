"""The registry of kernels, and the choice of an implementation."""

import logging
import os
import subprocess
import sys

import pytest
import torch

import kernels
from kernels import dispatch
from kernels.gae import gae, make_inputs


def test_kernels_are_listed():
    assert {"gae", "normalize"} <= set(kernels.names())


@pytest.mark.parametrize("name", kernels.names())
def test_inputs_fit_the_call(name):
    entry = kernels.get(name)
    entry.call(**entry.inputs(3, 5, dtype=torch.float64, seed=1), implementation="reference")


def test_a_missing_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'normalize'"):
        kernels.get("normalise")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'gae' is registered twice"):
        kernels.kernel("gae", inputs=make_inputs)(gae)


@pytest.mark.parametrize(
    ("device", "dtype", "chosen"),
    [("cpu", torch.float32, "cpu"), ("cpu", torch.float64, "reference"), ("mps", torch.float32, "reference")],
)
def test_auto_chooses_once_and_says_why(device, dtype, chosen, caplog):
    dispatch.load.cache_clear()
    with caplog.at_level(logging.INFO, logger="kernels.dispatch"):
        module = dispatch.load("gae", "auto", device, dtype)
        assert dispatch.load("gae", "auto", device, dtype) is module
    assert module.__name__ == f"kernels.gae.{chosen}"
    assert len(caplog.messages) == 1
    assert f"{chosen}, because" in caplog.messages[0]


def test_an_unknown_implementation_is_refused():
    with pytest.raises(
        ValueError, match=r"unknown implementation 'cuda'; known: auto, reference, triton, cpu"
    ):
        gae(**make_inputs(3, 5), implementation="cuda")


@pytest.mark.parametrize(
    ("implementation", "device", "dtype"),
    [("triton", "cpu", torch.float32), ("cpu", "cuda", torch.float32), ("cpu", "cpu", torch.float64)],
)
def test_tensors_that_an_implementation_cannot_take_are_refused(implementation, device, dtype, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=f"'{implementation}' takes float32 tensors on"):
        dispatch.load("gae", implementation, device, dtype)


@pytest.mark.parametrize(
    ("implementation", "device", "package", "pip_name"),
    [("triton", "cuda", "triton", "triton"), ("cpu", "cpu", "warp", "warp-lang")],
)
def test_a_missing_package_is_named(implementation, device, package, pip_name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "import_module", _raiser(ModuleNotFoundError(name=package)))
    dispatch.load.cache_clear()
    with pytest.raises(ImportError, match=f"pip install {pip_name}"):
        dispatch.load("gae", implementation, device, torch.float32)


def test_the_cpu_path_needs_no_triton_and_says_nothing(tmp_path):
    script = """
import sys
sys.modules["triton"] = None  # importing it raises ModuleNotFoundError
from kernels.gae import gae, make_inputs
from kernels.normalize import normalize_advantage
assert "warp" not in sys.modules
normalize_advantage(gae(**make_inputs(3, 5))[0])
assert "warp" in sys.modules
"""
    environment = {**os.environ, "WARP_CACHE_PATH": str(tmp_path)}  # empty: the kernels are built
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def _raiser(error):
    def raise_it(*args):
        raise error

    return raise_it
