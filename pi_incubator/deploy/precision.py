"""The network of an exported policy in fewer bits; what is around it stays in float32.

Readings span many orders of magnitude, so the normalizer, the history and the targets keep their precision:
they cost nothing. What costs is between the first and the last matrix product, and that is where a recurrent
network's gates are: its hidden state is computed in float16 and handed on in float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from pi_incubator.deploy.record import Recording
from pi_incubator.deploy.session import Session

PRODUCTS = ("Gemm", "MatMul")


def convert(model: onnx.ModelProto, precision: str, recording: Recording) -> onnx.ModelProto:
    """`model` with its network in `precision`; inputs and outputs stay float32.

    Args:
        model: in float32; is not changed.
        precision: one of `deploy.PRECISIONS`.
        recording: what the ranges of int8 are taken from.
    """
    own = onnx.ModelProto()
    own.CopyFrom(model)
    for index, node in enumerate(own.graph.node):
        node.name = node.name or f"node_{index}"
    if precision == "fp16":
        return _halved(own)
    if precision == "int8":
        return _quantized(own, recording)
    return own


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network's weights and operations in float16, between casts."""
    graph, inside = onnx.shape_inference.infer_shapes(model).graph, _network_nodes(model.graph)
    weights = {weight.name: weight for weight in graph.initializer if weight.data_type == TensorProto.FLOAT}
    floats = {value.name for value in (*graph.input, *graph.output, *graph.value_info) if _is_float(value)}
    outside = {value for node in graph.node if node.name not in inside for value in node.input}
    outside |= {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    halves: dict[str, str] = {}  # value -> its name in float16
    for node in graph.node:
        nodes.append(node)
        if node.name not in inside:
            continue
        for index, value in enumerate(node.input):
            if value not in halves and value in weights:
                halves[value] = f"{value}_fp16"
                half = numpy_helper.to_array(weights[value]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(half, halves[value]))
            elif value not in halves and value in floats:
                halves[value] = f"{value}_fp16"
                nodes.insert(-1, _cast(value, halves[value], TensorProto.FLOAT16))
            node.input[index] = halves.get(value, value)
        for index, value in enumerate(node.output):
            if value in floats:
                node.output[index] = halves[value] = f"{value}_fp16"
                if value in outside:
                    nodes.append(_cast(halves[value], value, TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {value for node in nodes for value in node.input}
    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    model.graph.CopyFrom(graph)
    return model


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == TensorProto.FLOAT


def _cast(value: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [result], f"cast_{result}", to=to)


def _quantized(model: onnx.ModelProto, recording: Recording) -> onnx.ModelProto:
    """Weights a channel and activations a tensor in int8, symmetric, as TensorRT wants its Q/DQ nodes.

    Outputs of the products stay float32: they are what the next activation, or the action, is made of. The
    products that readings enter stay too: normalized readings reach up to ten standard deviations, and eight
    bits for that range leave a step of 0.08 where most of them are. On Ant it would make 2.6 times the error.
    """
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
    }
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # its advice to preprocess for convolutions goes to the root
    try:
        with tempfile.TemporaryDirectory() as folder:
            exact, path = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            # Given a model instead of a file, the quantizer writes its weights into the working directory.
            onnx.save(model, exact)
            quantize_static(
                exact,
                path,
                _Calibration(model, recording),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_exclude=_products_of_readings(model.graph),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options=options,
            )
            return onnx.load(path)
    finally:
        logging.getLogger().setLevel(level)


def _products_of_readings(graph: onnx.GraphProto) -> list[str]:
    """Names of the matrix products that readings enter without another product between."""
    raw, products = {graph.input[0].name}, []
    for node in graph.node:  # in topological order, as ONNX asks for
        if not raw & set(node.input):
            continue
        if node.op_type in PRODUCTS:
            products.append(node.name)
        elif node.op_type != "Shape":
            raw |= set(node.output)
    return products


class _Calibration(CalibrationDataReader):
    """The inputs of every step of a recording, with what the policy remembers there."""

    def __init__(self, model: onnx.ModelProto, recording: Recording) -> None:
        self._feeds = self._play(Session(model.SerializeToString()), recording)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)

    @staticmethod
    def _play(session: Session, recording: Recording) -> Iterator[dict[str, np.ndarray]]:
        for readings, begins in zip(recording.readings, recording.begins, strict=True):
            session.feeds(readings)
            session.restart(begins)
            yield session.feeds(readings)
            session.step(readings)


def _network_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes on a way from one matrix product to another, and of the products."""
    products = {node.name for node in graph.node if node.op_type in PRODUCTS}
    after, before = set(products), set(products)
    made_by = {output: node.name for node in graph.node for output in node.output}
    for node in graph.node:  # in topological order, as ONNX asks for
        if any(made_by.get(value) in after for value in node.input):
            after.add(node.name)
    needed: set[str] = set()
    for node in reversed(graph.node):
        if node.name in products or needed & set(node.output):
            before.add(node.name)
            needed |= set(node.input)
    return after & before
