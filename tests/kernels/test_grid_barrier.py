"""A cooperative launch without a GPU: each of its programs is a process that runs the interpreter."""

import multiprocessing
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from kernels import _grid_barrier
from kernels.gae import gae, make_inputs

NUM_STEPS, NUM_WORLDS, NUM_LAUNCHES = 30, 70, 3
TILE = {"STEPS": 32, "WORLDS": 32}
NUM_PROGRAMS = 3


def _run_program(rank, stream, inputs, outputs, partial, word):
    """Program `rank` of each launch; a launch begins when all programs of the one before have ended."""
    from triton.runtime.interpreter import interpreter_builder

    from kernels.gae.triton_kernel import gae_tile_kernel

    interpreter_builder.grid_idx, interpreter_builder.grid_dim = (rank, 0, 0), (NUM_PROGRAMS, 1, 1)
    interpreter_builder.set_grid_idx = interpreter_builder.set_grid_dim = lambda *_: None
    tensors, discounts = inputs[:6], inputs[6:]
    for advantage, value_target, moments in outputs:
        stream.wait()
        gae_tile_kernel[(1,)](
            *(*tensors, advantage, value_target, partial, word, moments),
            *(NUM_STEPS, NUM_WORLDS, NUM_WORLDS, 1, *discounts),
            **TILE,
            PARTIALS=4,
        )


def test_every_program_waits_for_the_others(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    case = make_inputs(NUM_STEPS, NUM_WORLDS)
    mask = torch.arange(NUM_STEPS * NUM_WORLDS).view(NUM_STEPS, NUM_WORLDS) % 5 > 0
    *tensors, gamma, lam = case.values()
    outputs = [
        (*torch.full((2, NUM_STEPS, NUM_WORLDS), torch.nan), torch.full((3,), torch.nan))
        for _ in range(NUM_LAUNCHES)
    ]
    word, partial = torch.zeros(1, dtype=torch.int64), torch.full((3, NUM_PROGRAMS), torch.nan)
    stream = multiprocessing.get_context("spawn").Barrier(NUM_PROGRAMS)
    inputs = (*tensors, mask, gamma, gamma * lam, 1e-8)
    arguments = (stream, inputs, outputs, partial, word)
    torch.multiprocessing.spawn(_run_program, arguments, nprocs=NUM_PROGRAMS)
    exact = {
        name: x.double() if x.is_floating_point() else x for name, x in case.items() if torch.is_tensor(x)
    }
    expected = gae(**case | exact, mask=mask, implementation="reference")
    for found in outputs:
        assert all(torch.equal(a, b) for a, b in zip(found, outputs[0], strict=True))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert word.item() == NUM_LAUNCHES << 32, "nothing is left over for the next launch"


def test_no_more_programs_than_are_resident(monkeypatch):
    from kernels.gae.triton_kernel import one_tile_each

    h100 = SimpleNamespace(
        multi_processor_count=132, regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: h100)
    device = torch.device("cuda", 99)
    assert _grid_barrier.programs_at_once(device, 4, 128) == 4 * 132
    assert one_tile_each(24, 4096, device) == {"STEPS": 32, "WORLDS": 32}
    assert one_tile_each(16, 64 * 4 * 132, device) == {"STEPS": 16, "WORLDS": 64}
    assert one_tile_each(16, 64 * 4 * 132 + 1, device) is None
    assert one_tile_each(128, 8, device) == {"STEPS": 128, "WORLDS": 8}
    assert one_tile_each(129, 8, device) is None
    assert one_tile_each(1, 1, torch.device("cpu")) == {"STEPS": 2, "WORLDS": 512}
    assert one_tile_each(1, 513, torch.device("cpu")) is None


def test_launches_that_may_meet_have_words_of_their_own(monkeypatch):
    stream = SimpleNamespace(cuda_stream=1, synchronize=lambda: None)
    capturing = False
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(_grid_barrier, "_words", {})
    device = torch.device("cuda", 99)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, dtype, device: zeros(*shape, dtype=dtype))

    def word():
        return _grid_barrier.barrier_word(device).data_ptr()

    capturing = True
    assert word() != word()
    assert not _grid_barrier._words, "a graph would zero all of them at each replay"
    capturing = False
    first = word()
    assert word() == first
    capturing = True
    captured = [word() for _ in range(3)]
    capturing, stream.cuda_stream = False, 2
    assert len({first, word(), *captured}) == 5
    capturing = True
    for _ in range(_grid_barrier.NUM_WORDS):
        assert word() != first
