"""The few calls of CUDA's driver that a network on the GPU needs; its library is on every such machine.

See NVIDIA's CUDA Driver API. The context and the memory are those that TensorRT uses itself.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._network import Array
from .errors import RuntimeBundleError

LIBRARY = "libcuda.so.1"
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
MEMHOSTALLOC_DEVICEMAP = 2
STREAM_NON_BLOCKING = 1


@dataclass(frozen=True)
class Gpu:
    """A GPU's name as the driver tells it, and its compute capability, 87 for 8.7."""

    name: str
    capability: int


class Cuda:
    """The first GPU, and a stream of work on it.

    Raises:
        RuntimeBundleError: there is no driver or no GPU, or a call of it fails.
    """

    def __init__(self) -> None:
        try:
            self._library: Any = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise RuntimeBundleError(f"tensorrt: no CUDA driver ({error}); use onnxruntime here") from None
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(STREAM_NON_BLOCKING))
        self.gpu = self._identify(device)
        self._stream = stream
        self.stream = int(stream.value or 0)
        self._pointers: dict[int, int] = {}

    def allocate(self, size: int) -> Array:
        """So many float32 zeros in memory that both the CPU and the GPU reach; kept for the process's life.

        On a Jetson both have the same memory, and nothing is copied; elsewhere the GPU reads over the bus.
        """
        host, device = ctypes.c_void_p(), ctypes.c_uint64()
        num_bytes = ctypes.c_size_t(max(4 * size, 4))
        self._call("cuMemHostAlloc", ctypes.byref(host), num_bytes, ctypes.c_uint(MEMHOSTALLOC_DEVICEMAP))
        self._call("cuMemHostGetDevicePointer_v2", ctypes.byref(device), host, ctypes.c_uint(0))
        assert host.value is not None  # the call succeeded
        array = np.ctypeslib.as_array((ctypes.c_float * size).from_address(host.value))
        array.fill(0.0)
        self._pointers[host.value] = device.value - host.value
        return array

    def device_pointer(self, array: Array) -> int:
        """Where the GPU finds `array`, a view into what `allocate` gave."""
        address = array.ctypes.data
        start = max(host for host in self._pointers if host <= address)
        return address + self._pointers[start]

    def synchronize(self) -> bool:
        """Wait until the stream's work is done; False where it failed."""
        return bool(self._library.cuStreamSynchronize(self._stream) == 0)

    def _identify(self, device: ctypes.c_int) -> Gpu:
        name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        for number, attribute in ((major, COMPUTE_CAPABILITY_MAJOR), (minor, COMPUTE_CAPABILITY_MINOR)):
            self._call("cuDeviceGetAttribute", ctypes.byref(number), ctypes.c_int(attribute), device)
        return Gpu(name.value.decode(), 10 * major.value + minor.value)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise RuntimeBundleError(
                f"tensorrt: {function} of the CUDA driver gave error {status}; is there a GPU?"
            )
