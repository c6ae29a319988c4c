"""Tensors cross between torch, JAX and Warp by pointer, or the crossing is refused.

On CUDA arrays are passed, not capsules, so that the consumer's stream waits for the producer's. A JAX
array is immutable by contract: a torch view of it is for reading, and its buffer must not be donated while
the view lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    import jax
    import warp as wp

ALIGNMENT_BYTES = 64
"""XLA copies, and does not say so, what starts at another address."""


class BridgeCopyError(RuntimeError):
    """A tensor could have crossed only as a copy; the message names the reason."""


@dataclass
class BridgeStats:
    """What crossed since the last `reset`; two integer additions a crossing, so it stays on."""

    crossings: int = 0
    copies: int = 0

    def reset(self) -> None:
        self.crossings = self.copies = 0


stats = BridgeStats()


def to_torch(array: jax.Array) -> Tensor:
    """The memory of `array` as a tensor of the same shape, dtype and device.

    Raises:
        BridgeCopyError: the buffer is not laid out row by row, so DLPack would have rearranged it.
    """
    # On a CPU there is no stream to wait for, and a capsule spares torch's questions about it: half the time.
    tensor = torch.from_dlpack(array.__dlpack__() if array.platform() == "cpu" else array)
    _record(tensor.data_ptr(), array, "its buffer is not in row-major order")
    return tensor


def to_jax(tensor: Tensor) -> jax.Array:
    """The memory of `tensor` as a JAX array of the same shape, dtype and device.

    Raises:
        BridgeCopyError: the tensor is not contiguous or not aligned to 64 bytes; see `aligned`.
    """
    import jax

    if reason := copy_reason(tensor):
        stats.copies += 1
        raise BridgeCopyError(
            f"a tensor {tuple(tensor.shape)} of {tensor.dtype} would be copied on its way to JAX: {reason}; "
            "allocate it with bridge.aligned_empty or pass it through bridge.aligned"
        )
    array = jax.dlpack.from_dlpack(tensor.detach())
    _record(tensor.data_ptr(), array, "JAX decided so")
    return array


def warp_to_torch(array: wp.array[Any]) -> Tensor:
    """The memory of a Warp `array` as a tensor; vectors and matrices become trailing dimensions.

    Warp works on torch's stream where it is told to (`wp.stream_from_torch`); the view carries no event.
    """
    import warp as wp

    stats.crossings += 1
    return wp.to_torch(array, requires_grad=False)


def torch_to_warp(tensor: Tensor, dtype: type) -> wp.array[Any]:
    """The memory of `tensor` as a Warp array of `dtype`; any strides and alignment will do."""
    import warp as wp

    stats.crossings += 1
    return cast("wp.array[Any]", wp.from_torch(tensor, dtype=dtype, requires_grad=False))


def copy_reason(tensor: Tensor) -> str | None:
    """Why JAX would copy `tensor` instead of sharing it; None when it would not."""
    if not tensor.is_contiguous():
        return f"not contiguous, strides {tensor.stride()}"
    if past := tensor.data_ptr() % ALIGNMENT_BYTES:
        return f"not aligned to {ALIGNMENT_BYTES} bytes, it starts {past} bytes past"
    return None


def aligned(tensor: Tensor) -> Tensor:
    """`tensor` itself where JAX can share it, or else a copy that it can share, which `stats` counts."""
    if copy_reason(tensor) is None:
        return tensor
    stats.copies += 1
    return aligned_empty(tensor.shape, tensor.dtype, tensor.device).copy_(tensor)


def aligned_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized contiguous tensor that starts at a multiple of 64 bytes."""
    size = torch.Size(shape).numel() * dtype.itemsize
    storage = torch.empty(size + ALIGNMENT_BYTES, dtype=torch.uint8, device=device)
    start = -storage.data_ptr() % ALIGNMENT_BYTES
    return storage[start : start + size].view(dtype).view(shape)


def _record(pointer: int, array: jax.Array, reason: str) -> None:
    """Count a crossing, and refuse it where the two sides do not share memory."""
    stats.crossings += 1
    # An empty array has no memory to share, and each side invents an address for it.
    if array.size and array.unsafe_buffer_pointer() != pointer:
        stats.copies += 1
        raise BridgeCopyError(f"an array {array.shape} of {array.dtype} was copied, not shared: {reason}")
