"""Fewer bits in the network, none fewer around it, and an error that is measured."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from torch import nn

from pi_incubator.deploy.record import action_error
from pi_incubator.deploy.session import Session, open_session
from pi_incubator.distillation.quantize import make_plain, watch_ranges
from tests.deploy.conftest import make_source

LIMITS = {"fp16": 0.02, "int8": 0.3}
CASES = [("ant", 1, "mlp"), ("go1_velocity", 4, "mlp"), ("go1_velocity", 2, "gru")]


@pytest.fixture(scope="module", params=CASES, ids=str)
def source(request, source_of):
    return source_of(*request.param)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_error_is_there_and_small(source, precision):
    artifact = source.artifact(precision)
    assert 1e-6 < artifact.action_error < LIMITS[precision]
    session = Session(artifact.model)
    assert action_error(session, source.recording, source.env.interface().targets) == artifact.action_error
    nodes = open_session(artifact.model, "policy.onnx")
    assert {node.type for node in (*nodes.get_inputs(), *nodes.get_outputs())} == {"tensor(float)"}
    assert artifact.contract["precision"] == precision


def test_half_precision_is_in_the_networks_weights_alone(source):
    exact, half = (weights(source.artifact(precision).model) for precision in ("fp32", "fp16"))
    matrices = [name for name, value in exact.items() if value.ndim == 2 and min(value.shape) > 1]
    assert len(matrices) >= 3
    for name in matrices:
        np.testing.assert_array_equal(half[f"{name}_fp16"], exact[name].astype(np.float16))
        assert name not in half
    for name in exact:
        if "normalizer" in name or "targets" in name:
            np.testing.assert_array_equal(half[name], exact[name])


def test_int8_is_symmetric_and_the_first_layer_is_spared(source_of):
    model = source_of("ant", 1, "mlp").artifact("int8").model
    graph = onnx.load_from_string(model).graph
    kinds = [weight.data_type for weight in graph.initializer if weight.name.endswith("_quantized")]
    assert kinds == [TensorProto.INT8] * 2
    zero_points = [value for name, value in weights(model).items() if name.endswith("zero_point")]
    assert zero_points
    assert not any(value.any() for value in zero_points)
    assert not any(node.domain for node in graph.node), "an operator that only onnxruntime has"


PARTS = {
    "two parts": {"policy": "mlp", "policy/joint_velocity": "mlp"},
    "a part as it is": {"policy": "mlp", "policy/joint_velocity": "identity"},
    "all as it is": {"policy": "identity"},
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_every_layer_that_readings_enter_is_spared(parts):
    """In the file, and in the training that rounds as the file does: all other layers are in eight bits."""
    source = make_source("ant", network={"name": "encoders", "actor": parts, "hidden_sizes": [16, 8]})
    try:
        layers = watch_ranges(nn.ModuleList([source.policy.encoder, source.policy.head]))
        expected = sorted((layer.in_features, layer.out_features) for layer in layers)
        make_plain(source.policy)
        graph = weights(source.artifact("int8").model)
        shapes = [value.shape for name, value in graph.items() if value.dtype == np.int8 and value.ndim == 2]
        assert sorted(shapes) in (expected, sorted((out, into) for into, out in expected))
    finally:
        source.env.close()


def test_int8_weights_are_the_policys_within_half_a_level(source_of):
    source = source_of("ant", 1, "mlp")
    rounded, exact = weights(source.artifact("int8").model), weights(source.artifact().model)
    name = next(name for name in rounded if name.endswith("_quantized"))
    scale = rounded[name.replace("_quantized", "_scale")]
    original = exact[name.removesuffix("_quantized")]
    axis = 0 if len(scale) == len(original) else 1
    levels = rounded[name] * np.expand_dims(scale, 1 - axis)
    np.testing.assert_allclose(levels, original, atol=0.51 * scale.max())


def weights(model):
    graph = onnx.load_from_string(model).graph
    return {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
