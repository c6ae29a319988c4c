"""Settings of the process that runs the tests; libraries read them once, when they are imported."""

import functools
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED_ROBOTS = ROOT.parent / "shared" / "robots"

# Robots come from the folder beside the checkout where there is one, so that tests need no download.
if SHARED_ROBOTS.is_dir():
    os.environ.setdefault("MENAGERIE_ROOT", str(SHARED_ROBOTS))

# Several workers share the cores (`pytest -n`): one thread each, and no thread that waits by spinning.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Tests that import onnxruntime before us send nothing to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Runs of tests go to the stores that the tests name.
os.environ.pop("MLFLOW_TRACKING_URI", None)

# Envs that are built twice are compiled once, whichever worker builds them. `make clean` and pytest's own
# `--cache-clear` empty the folder. Warp and Inductor share a cache of their own by default.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "d" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


@pytest.fixture(autouse=True, scope="session")
def one_onnx_registry():
    """Exports share torch's table of ONNX functions: to build it takes half a second, and none changes it."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # after the settings above

    of_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", of_torchlib)
        yield
