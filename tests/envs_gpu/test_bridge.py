"""Tensors cross by pointer, and what could only cross as a copy is refused."""

import jax.numpy as jnp
import pytest
import torch
import warp as wp

from envs_gpu import bridge
from envs_gpu.make import make_env
from envs_gpu.physics import BACKENDS

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
JAX_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool)
WARP_DTYPES = {
    torch.float32: wp.float32,
    torch.float64: wp.float64,
    torch.int32: wp.int32,
    torch.bool: wp.bool,
}


@pytest.fixture(autouse=True)
def fresh_stats():
    wp.init()
    bridge.stats.reset()


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("dtype", JAX_DTYPES, ids=str)
def test_torch_and_jax_share_memory_both_ways(dtype, device):
    tensor = bridge.aligned_empty((5, 3), dtype, device).copy_(torch.arange(15).view(5, 3) % 2)
    array = bridge.to_jax(tensor)
    back = bridge.to_torch(array)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr() == back.data_ptr()
    assert (array.shape, back.dtype, back.device) == ((5, 3), dtype, tensor.device)
    assert torch.equal(back, tensor)
    assert (bridge.stats.crossings, bridge.stats.copies) == (2, 0)


def test_what_jax_computes_is_viewed_not_copied():
    array = jnp.arange(7.0) * 2
    tensor = bridge.to_torch(array)
    assert tensor.data_ptr() == array.unsafe_buffer_pointer()
    assert tensor.tolist() == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("dtype", WARP_DTYPES, ids=str)
def test_torch_and_warp_share_memory_both_ways(dtype, device):
    tensor = torch.zeros(5, 3, dtype=dtype, device=device)
    array = bridge.torch_to_warp(tensor, WARP_DTYPES[dtype])
    back = bridge.warp_to_torch(array)
    assert array.ptr == tensor.data_ptr() == back.data_ptr()
    tensor[2, 1] = 1
    assert torch.equal(bridge.warp_to_torch(array), tensor)
    assert bridge.stats.copies == 0


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(64)[1:33], "not aligned to 64 bytes, it starts 4 bytes past"),
        (torch.zeros(16, 16).T, r"not contiguous, strides \(1, 16\)"),
        (torch.zeros(32, 16)[:, :4], "not contiguous"),
    ],
    ids=["misaligned", "transposed", "columns"],
)
def test_a_tensor_that_jax_would_copy_is_refused_with_the_reason(tensor, reason):
    with pytest.raises(bridge.BridgeCopyError, match=reason):
        bridge.to_jax(tensor)
    assert (bridge.stats.crossings, bridge.stats.copies) == (0, 1)


def test_aligned_copies_only_what_could_not_cross():
    good, bad = torch.arange(16.0), torch.arange(17.0)[1:]
    assert bridge.aligned(good) is good
    assert bridge.stats.copies == 0
    copy = bridge.aligned(bad)
    assert torch.equal(copy, bad)
    assert bridge.copy_reason(copy) is None
    assert bridge.stats.copies == 1


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (64, 29)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64], ids=str)
def test_aligned_empty_is_aligned_for_every_size(shape, dtype):
    for _ in range(5):
        tensor = bridge.aligned_empty(shape, dtype, CPU)
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert bridge.copy_reason(tensor) is None


# XLA takes half a minute to compile an ant.
WORLDS = {"mujoco": "ant", "warp": "ant", "mjx": "cartpole_balance", "newton": "ant"}


def engine_memory(physics, name):
    """First and last byte of what the simulator itself holds for a field of the state."""
    if physics.name == "mujoco":
        arrays = {"ctrl": physics._ctrl, "sensordata": physics._sensordata}
        array = arrays.get(name, physics._full)
        return array.ctypes.data, array.ctypes.data + array.nbytes
    if physics.name in ("warp", "newton"):
        array = getattr(physics._data, name)
        return array.ptr, array.ptr + array.capacity
    array = physics._shown
    return array.unsafe_buffer_pointer(), array.unsafe_buffer_pointer() + array.nbytes


@pytest.mark.parametrize("backend", BACKENDS.names())
def test_a_hundred_steps_copy_nothing(backend):
    """Resets included, the state that the task reads is at every step the simulator's own memory."""
    env = make_env(WORLDS[backend], backend=backend, num_envs=8, device=CPU)
    bridge.stats.reset()
    some = torch.arange(8) % 2 == 0
    for index, action in enumerate(torch.rand(100, 8, env.spec.action_dim).unbind()):
        env.step(action.clone())
        if index % 25 == 0:
            env.restart(some)
        for name, view in env.physics.state._asdict().items():
            if view.numel():
                first, end = engine_memory(env.physics, name)
                assert first <= view.data_ptr() < end, name
    assert bridge.stats.copies == 0
    if backend == "mjx":
        # A step takes the state out, as one array; a reset mask, positions and velocities in.
        steps, restarts = 100, 4
        assert bridge.stats.crossings == steps + 4 * restarts
    else:
        assert bridge.stats.crossings == 0
