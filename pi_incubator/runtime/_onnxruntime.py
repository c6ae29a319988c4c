"""The network run by onnxruntime on one core of the CPU."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from ._network import OBSERVATION, TARGET, Array, Network, tensors
from .bundle import Bundle
from .errors import RuntimeBundleError

logger = logging.getLogger(__name__)

FLOAT = "tensor(float)"
MAX_REASON_CHARACTERS = 200  # of an error of onnxruntime in a message


class OnnxRuntimeNetwork(Network):
    """Inputs and outputs are bound to their buffers once: 8 us a run where `session.run` takes 11.

    Raises:
        RuntimeBundleError: onnxruntime is missing, or refuses or cannot run the file, or its inputs and
            outputs are not the contract's.
    """

    provider = "onnxruntime"

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.contract, _aligned_zeros)
        self._session = _open(bundle)
        _check_tensors(self._session, bundle)
        self._bindings = (self._bind(0), self._bind(1))
        self._run = self._session.run_with_iobinding
        self._has_failed = False
        try:
            self._run(self._bindings[0])
        except Exception as error:
            raise _refused(bundle, error) from None
        self._warm_up()

    def run(self) -> None:
        """From `observation` and the states compute `target` and the next states; NaN where that fails."""
        try:
            self._run(self._bindings[self._side])
        except Exception as error:  # an index out of range that follows from the observation, for example
            self.target.fill(np.nan)
            if not self._has_failed:  # told once: a robot's journal is not to fill at its control rate
                logger.warning("onnxruntime cannot run the network on an observation: %s", _in_short(error))
            self._has_failed = True

    def _bind(self, side: int) -> Any:
        """Bound so that the states on `side` are read, and those on the other are written."""
        binding = self._session.io_binding()
        inputs = {OBSERVATION: self.observation}
        outputs = {TARGET: self.target}
        inputs |= {f"{name}_in": array for name, array in self._states[side].items()}
        outputs |= {f"{name}_out": array for name, array in self._states[side ^ 1].items()}
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, np.float32, (1, array.size), array.ctypes.data)
        return binding


def _open(bundle: Bundle) -> Any:
    # Otherwise it writes into the home, and seconds later starts threads that send reports to its makers.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeBundleError(
            f"onnxruntime: cannot be imported ({error}); pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    # One step is a few microseconds of work: handing parts of it to other threads takes longer than doing it.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are not printed; they come back as exceptions
    # Where x86 has no VNNI, products of int8 saturate in 16 bits unless onnxruntime is told to be exact.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(bundle.onnx, options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions share no base class of their own.
    except Exception as error:
        raise _refused(bundle, error) from None


def _refused(bundle: Bundle, error: Exception) -> RuntimeBundleError:
    name = bundle.contract.onnx.file
    fix = "export the policy again, or update onnxruntime"
    return RuntimeBundleError(f"{bundle.path}/{name}: refused by onnxruntime ({_in_short(error)}); {fix}")


def _in_short(error: Exception) -> str:
    """An error of onnxruntime in one line of a readable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_REASON_CHARACTERS else text[: MAX_REASON_CHARACTERS - 3] + "..."


def _check_tensors(session: Any, bundle: Bundle) -> None:
    where = f"{bundle.path}/{bundle.contract.onnx.file}"
    found = (session.get_inputs(), session.get_outputs())
    for kind, expected, nodes in zip(("input", "output"), tensors(bundle.contract), found, strict=True):
        if [node.name for node in nodes] != list(expected):
            names = [node.name for node in nodes]
            raise RuntimeBundleError(
                f"{where}: {kind}s {names} are not the contract's {list(expected)}; export it again"
            )
        for node in nodes:
            # A batch of any size is a name or None, a fixed one must be 1.
            batch, width = node.shape if len(node.shape) == 2 else (0, 0)
            if node.type != FLOAT or width != expected[node.name] or (isinstance(batch, int) and batch != 1):
                raise RuntimeBundleError(
                    f"{where}: {kind} {node.name} is {node.type} {node.shape}, not the contract's "
                    f"{FLOAT} [1, {expected[node.name]}]; export it again"
                )


def _aligned_zeros(size: int) -> Array:
    """Zeros that begin on a cache line."""
    raw = np.zeros(size * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * 4].view(np.float32)
