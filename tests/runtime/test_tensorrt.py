"""TensorRT cannot run here: a module that stands in for it computes with onnxruntime what it is pointed at.

What is checked is our side: which engine is taken, and that addresses, shapes and states are the right ones.
The calls of the CUDA driver go through a library that is compiled against NVIDIA's own header.
"""

import ctypes
import json
import subprocess
import sys
import types
from pathlib import Path

import bundles
import numpy as np
import onnxruntime
import pytest

from pi_incubator.runtime import Flags, Policy, RuntimeBundleError, _cuda
from pi_incubator.runtime._tensorrt import engine_name

VERSION = "10.3.0"
ORIN = _cuda.Gpu("Orin (nvgpu)", 87)
DEVICE_OFFSET = 0x10000000000  # the GPU finds memory at another address than the CPU
DRIVER = r"""
#include <cuda.h>
#include <stdlib.h>
#include <string.h>
static int is_ready;
static CUcontext current;
CUresult cuInit(unsigned int flags) { is_ready = 1; return flags ? 1 : 0; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = 40 + ordinal; return is_ready ? 0 : 3; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = (CUcontext)0x700000000001; return device == 40 ? 0 : 1;
}
CUresult cuCtxSetCurrent(CUcontext context) {
    current = context; return context == (CUcontext)0x700000000001 ? 0 : 1;
}
CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    *stream = (CUstream)0x700000000002; return !current ? 201 : flags == CU_STREAM_NON_BLOCKING ? 0 : 1;
}
CUresult cuStreamSynchronize(CUstream stream) { return stream == (CUstream)0x700000000002 ? 0 : 1; }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    strncpy(name, "Orin (nvgpu)", size); return device == 40 ? 0 : 1;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 8
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? 7 : -1;
    return device == 40 ? 0 : 1;
}
CUresult cuMemHostAlloc(void **host, size_t size, unsigned int flags) {
    *host = malloc(size); memset(*host, 255, size); return flags == CU_MEMHOSTALLOC_DEVICEMAP ? 0 : 1;
}
CUresult cuMemHostGetDevicePointer(CUdeviceptr *device, void *host, unsigned int flags) {
    *device = (CUdeviceptr)host + 0x10000000000; return flags ? 1 : 0;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A driver with the signatures of cuda.h, which Triton brings; its functions check their arguments."""
    include = Path(pytest.importorskip("triton").__file__).parent / "backends" / "nvidia" / "include"
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    command = ["gcc", "-shared", "-fPIC", "-I", str(include), "-o", "libcuda.so", "driver.c"]
    try:
        subprocess.run(command, cwd=folder, check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    return str(folder / "libcuda.so")


class FakeContext:
    def __init__(self, session):
        self.session, self.shapes, self.addresses, self.works = session, {}, {}, True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 0x700000000002
        feed = {name: self.memory(name, shape) for name, shape in self.shapes.items()}
        names = [node.name for node in self.session.get_outputs()]
        for name, value in zip(names, self.session.run(names, feed), strict=True):
            self.memory(name, value.shape)[:] = value
        return self.works

    def memory(self, name, shape):
        count, address = int(np.prod(shape)), self.addresses[name] - DEVICE_OFFSET
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class FakeEngine:
    def __init__(self, onnx):
        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.nodes = self.inputs | {node.name: node for node in self.session.get_outputs()}
        self.num_io_tensors = len(self.nodes)
        self.contexts = []

    def get_tensor_name(self, i):
        return list(self.nodes)[i]

    def get_tensor_mode(self, name):
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name):
        return "float32"

    def get_tensor_shape(self, name):
        return (-1, self.nodes[name].shape[1])

    def create_execution_context(self):
        self.contexts.append(FakeContext(self.session))
        return self.contexts[-1]


@pytest.fixture
def tensorrt(driver, monkeypatch):
    """A plan is an ONNX file behind `PLAN`; anything else is refused, as TensorRT does."""
    module = types.ModuleType("tensorrt")
    module.__version__ = VERSION
    module.float32 = "float32"
    module.TensorIOMode = types.SimpleNamespace(INPUT="input", OUTPUT="output")
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    module.engines = []

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, plan):
            if not plan.startswith(b"PLAN"):
                return None
            module.engines.append(FakeEngine(plan[4:]))
            return module.engines[-1]

    module.Runtime = Runtime
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(_cuda, "LIBRARY", driver)
    return module


def add_engine(bundle, gpu=ORIN, version=VERSION, plan=None):
    onnx = (bundle / "policy.onnx").read_bytes()
    sha256 = json.loads((bundle / "contract.json").read_text())["onnx"]["sha256"]
    (bundle / "engines").mkdir(exist_ok=True)
    path = bundle / "engines" / engine_name(gpu, version, sha256)
    path.write_bytes(b"PLAN" + onnx if plan is None else plan)
    return path


@pytest.fixture(params=["mlp", "gru"])
def bundle(request, tmp_path):
    return {"mlp": bundles.mlp_bundle, "gru": bundles.gru_bundle}[request.param](tmp_path / "bundle")


@pytest.fixture
def observations():
    return np.random.default_rng(0).normal(size=(20, bundles.WIDTH)).astype(np.float32)


@pytest.mark.parametrize("provider", ["tensorrt", "auto"])
def test_acts_like_onnxruntime(tensorrt, bundle, observations, provider):
    add_engine(bundle)
    policy, expected = Policy.load(bundle, provider=provider), Policy.load(bundle, provider="onnxruntime")
    assert policy.provider == "tensorrt"
    for observation in observations:
        np.testing.assert_allclose(policy.step(observation), expected.step(observation), atol=1e-6)
    policy.reset()
    expected.reset()
    np.testing.assert_allclose(policy.step(observations[0]), expected.step(observations[0]), atol=1e-6)


def test_a_gpu_that_fails_is_safe_and_forgets_nothing(tensorrt, bundle, observations):
    add_engine(bundle)
    policy, undisturbed = (
        Policy.load(bundle, provider="tensorrt"),
        Policy.load(bundle, provider="onnxruntime"),
    )
    policy.step(observations[0])
    undisturbed.step(observations[0])
    for context in tensorrt.engines[-1].contexts:
        context.works = False
    np.testing.assert_array_equal(policy.step(observations[1]), np.full(12, 0.1, np.float32))
    assert policy.flags == Flags.NAN_TARGET
    for context in tensorrt.engines[-1].contexts:
        context.works = True
    np.testing.assert_allclose(policy.step(observations[2]), undisturbed.step(observations[2]), atol=1e-6)


OTHERS = {
    "gpu": {"gpu": _cuda.Gpu("NVIDIA Thor", 110)},
    "same name, other chip": {"gpu": _cuda.Gpu("Orin (nvgpu)", 86)},
    "tensorrt": {"version": "10.16.0"},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_an_engine_for_another_gpu_or_tensorrt_is_refused(tensorrt, bundle, other):
    path = add_engine(bundle, **other)
    with pytest.raises(RuntimeBundleError, match=r"no engine for this network on Orin \(nvgpu\)") as caught:
        Policy.load(bundle, provider="tensorrt")
    assert path.name in str(caught.value)
    assert not tensorrt.engines


def test_an_engine_of_another_network_is_refused(tensorrt, bundle, tmp_path):
    other = add_engine(
        bundles.write_bundle(tmp_path / "b", bundles.mlp_onnx(seed=1), states=[("last_action", 12)])
    )
    (bundle / "engines").mkdir()
    (bundle / "engines" / other.name).write_bytes(other.read_bytes())
    with pytest.raises(RuntimeBundleError, match="no engine for this network"):
        Policy.load(bundle, provider="tensorrt")


def test_an_engine_that_tensorrt_refuses(tensorrt, bundle):
    add_engine(bundle, plan=b"of another GPU, under this one's name")
    with pytest.raises(RuntimeBundleError, match=r"engine is refused by TensorRT 10.3.0 on Orin"):
        Policy.load(bundle, provider="tensorrt")


def test_an_engine_with_other_tensors(tensorrt, bundle):
    add_engine(bundle, plan=b"PLAN" + bundles.mlp_onnx(width=20).SerializeToString())
    with pytest.raises(RuntimeBundleError, match=r"tensors are not the contract's \(.*observation"):
        Policy.load(bundle, provider="tensorrt")


def test_auto_falls_back_and_says_why(tensorrt, bundle, caplog):
    add_engine(bundle, version="10.16.0")
    assert Policy.load(bundle).provider == "onnxruntime"
    assert "onnxruntime is used: " in caplog.text
    assert "no engine for this network" in caplog.text


def test_auto_without_an_engine_is_onnxruntime(tensorrt, bundle, caplog):
    """And nothing is said about TensorRT, nor where onnxruntime is asked for beside an engine."""
    assert Policy.load(bundle).provider == "onnxruntime"
    add_engine(bundle)
    assert Policy.load(bundle, provider="onnxruntime").provider == "onnxruntime"
    assert not caplog.records
    assert not tensorrt.engines


def test_without_tensorrt_or_a_driver(bundle, tensorrt, monkeypatch):
    monkeypatch.setattr(_cuda, "LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(RuntimeBundleError, match=r"tensorrt: no CUDA driver .*use onnxruntime here"):
        Policy.load(bundle, provider="tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeBundleError, match=r"tensorrt: cannot be imported .*use onnxruntime here"):
        Policy.load(bundle, provider="tensorrt")


def test_a_driver_call_that_fails_is_named(tensorrt, bundle, monkeypatch):
    monkeypatch.setattr(_cuda, "STREAM_NON_BLOCKING", 3)
    with pytest.raises(RuntimeBundleError, match="cuStreamCreate of the CUDA driver gave error 1"):
        Policy.load(bundle, provider="tensorrt")


def test_engine_name():
    assert engine_name(ORIN, VERSION, "a" * 64) == "aaaaaaaaaaaaaaaa-orin-nvgpu-sm87-trt10.3.0.plan"
