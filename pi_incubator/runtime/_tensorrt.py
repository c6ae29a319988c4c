"""The network run by TensorRT, from an engine that was built on this very kind of GPU."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from . import _cuda
from ._cuda import Gpu
from ._network import OBSERVATION, TARGET, Network, tensors
from .bundle import ENGINES, Bundle
from .errors import RuntimeBundleError

BUILD = "build it on this device with build_engine.py of the bundle, or use onnxruntime"


def engine_name(gpu: Gpu, tensorrt_version: str, onnx_sha256: str) -> str:
    """File name of the engine of one network, for one kind of GPU and one version of TensorRT."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return f"{onnx_sha256[:16]}-{slug}-sm{gpu.capability}-trt{tensorrt_version}.plan"


def find_engine(bundle: Bundle, gpu: Gpu, tensorrt_version: str) -> bytes:
    """The bundle's engine for this GPU, this TensorRT and this network.

    Raises:
        RuntimeBundleError: it has none, or only others.
    """
    name = engine_name(gpu, tensorrt_version, bundle.contract.onnx.sha256)
    if name in bundle.engines:
        return bundle.engines[name]
    others = ", ".join(sorted(bundle.engines)) or "none"
    raise RuntimeBundleError(
        f"{bundle.path}/{ENGINES}/{name}: no engine for this network on {gpu.name} with TensorRT "
        f"{tensorrt_version} (found: {others}); {BUILD}"
    )


class TensorRTNetwork(Network):
    """Two execution contexts whose addresses are set once, one for each side of the states.

    Step in the thread that made it: CUDA's context is that thread's.

    Raises:
        RuntimeBundleError: TensorRT, the GPU or the engine is missing, or the engine is not this network's.
    """

    provider = "tensorrt"

    def __init__(self, bundle: Bundle) -> None:
        tensorrt = import_tensorrt()
        self._cuda = _cuda.Cuda()
        super().__init__(bundle.contract, self._cuda.allocate)
        plan = find_engine(bundle, self._cuda.gpu, tensorrt.__version__)
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            problem = f"its engine is refused by TensorRT {tensorrt.__version__} on {self._cuda.gpu.name}"
            raise RuntimeBundleError(f"{bundle.path}: {problem}; {BUILD}")
        _check_tensors(tensorrt, self._engine, bundle)
        self._contexts = (self._bind(0), self._bind(1))
        self._warm_up()

    def run(self) -> None:
        """From `observation` and the states compute `target` and the next states; NaN where the GPU fails."""
        started = self._contexts[self._side].execute_async_v3(self._cuda.stream)
        if not started or not self._cuda.synchronize():
            self.target.fill(np.nan)

    def _bind(self, side: int) -> Any:
        """A context that reads the states on `side` and writes those on the other."""
        context = self._engine.create_execution_context()
        inputs = {OBSERVATION: self.observation}
        outputs = {TARGET: self.target}
        inputs |= {f"{name}_in": array for name, array in self._states[side].items()}
        outputs |= {f"{name}_out": array for name, array in self._states[side ^ 1].items()}
        for name, array in inputs.items():
            context.set_input_shape(name, (1, array.size))
        for name, array in (inputs | outputs).items():
            context.set_tensor_address(name, self._cuda.device_pointer(array))
        return context


def import_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        RuntimeBundleError: it cannot be imported.
    """
    try:
        import tensorrt
    except ImportError as error:
        fix = "it comes with JetPack; use onnxruntime here"
        raise RuntimeBundleError(f"tensorrt: cannot be imported ({error}); {fix}") from None
    return tensorrt


def _check_tensors(tensorrt: Any, engine: Any, bundle: Bundle) -> None:
    """The engine's inputs and outputs are the contract's."""
    inputs, outputs = tensors(bundle.contract)
    expected = {name: (tensorrt.TensorIOMode.INPUT, width) for name, width in inputs.items()}
    expected |= {name: (tensorrt.TensorIOMode.OUTPUT, width) for name, width in outputs.items()}
    found = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        is_float = engine.get_tensor_dtype(name) == tensorrt.float32
        width = engine.get_tensor_shape(name)[-1] if is_float else None
        found[name] = (engine.get_tensor_mode(name), width)
    if found != expected:
        differ = ", ".join(sorted(name for name, _ in set(found.items()) ^ set(expected.items())))
        raise RuntimeBundleError(
            f"{bundle.path}: its engine's tensors are not the contract's ({differ}); {BUILD}"
        )
