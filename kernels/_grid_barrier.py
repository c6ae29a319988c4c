"""A barrier between all programs of one launch, which must be on the GPU at once (a cooperative launch).

Its state is one int64 word, whose upper half counts the barriers that were passed. Program 0 adds 2**32 less
the others, each other program adds 1: when the last has come, the upper half has grown by one and the lower
half is zero again, for any number of programs. So a word that was zeroed once serves any number of launches,
one after another, and no launch has to zero it first, which would take as long as a small kernel.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WORDS = 4096


@triton.jit
def grid_barrier(word_ptr):
    """What any program has written before is there for all of them after; read it past the L1 cache."""
    tl.debug_barrier()  # the writes of this program's other threads come before its arrival
    others = tl.cast(tl.num_programs(0) - 1, tl.int64)
    arrival = tl.where(tl.program_id(0) == 0, 4294967296 - others, 1)
    before = tl.atomic_add(word_ptr, arrival, sem="acq_rel") >> 32
    passed = before
    if others > 0:
        passed = tl.atomic_add(word_ptr, 0, sem="acquire") >> 32
        while passed == before:
            passed = tl.atomic_add(word_ptr, 0, sem="acquire") >> 32


@cache
def programs_at_once(device: torch.device, num_warps: int, num_registers: int) -> int:
    """How many programs of a kernel that uses so many registers a thread are resident together."""
    if device.type != "cuda":
        return 1  # the interpreter runs one after another
    properties = torch.cuda.get_device_properties(device)
    num_threads = 32 * num_warps
    # So many has every one since 2014, and not every torch tells it.
    registers = getattr(properties, "regs_per_multiprocessor", 65536)
    resident = min(
        registers // (num_threads * num_registers), properties.max_threads_per_multi_processor // num_threads
    )
    return int(properties.multi_processor_count * resident)


class _Words:
    """Of one device. Launches that may run at the same time must not share a word.

    Those of a stream never do. A captured launch runs in whatever stream its graph is replayed, so it owns a
    word for ever; one graph never runs beside itself.
    """

    def __init__(self, device: torch.device) -> None:
        # Two to a word: pointers stay aligned to 16 bytes, for which the kernel is compiled.
        zeros = torch.zeros(NUM_WORDS, 2, dtype=torch.int64, device=device)
        torch.cuda.current_stream(device).synchronize()  # other streams will use them
        self.unused = list(zeros.unbind())
        self.of_stream: dict[int, Tensor] = {}

    def take(self, stream: int, captured: bool) -> Tensor | None:
        word = None if captured else self.of_stream.get(stream)
        if word is None and self.unused:
            word = self.unused.pop()
            if not captured:
                self.of_stream[stream] = word
        return word


_words: dict[torch.device, _Words] = {}


def barrier_word(device: torch.device) -> Tensor:
    """The word for a launch that follows, in the current stream of `device`, the current device.

    The first call on a device waits for it. Where no word is left, or the first call of all is captured, it
    is a new one, zeroed in the stream.
    """
    word = None
    if device.type == "cuda":
        captured = torch.cuda.is_current_stream_capturing()
        if device not in _words and not captured:
            _words[device] = _Words(device)
        if device in _words:
            word = _words[device].take(torch.cuda.current_stream(device).cuda_stream, captured)
    return torch.zeros(2, dtype=torch.int64, device=device) if word is None else word
