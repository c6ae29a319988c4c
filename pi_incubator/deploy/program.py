"""A torch module as one ONNX file, the same bytes for the same module.

Letters: B batch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn


def to_onnx(
    module: nn.Module, example: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str], opset: int
) -> onnx.ModelProto:
    """`module` on the CPU as ONNX, whose inputs and outputs have any batch size.

    Args:
        module: `forward` takes one tensor, or one and then `*others`.
        example: of the inputs, each `[B, ...]` with B > 1.
        inputs: their names.
        outputs: names of what `forward` returns.
        opset: ONNX operator set.
    """
    axis = {0: torch.export.Dim("batch")}
    shapes = (axis,) if len(inputs) == 1 else (axis, tuple(axis for _ in inputs[1:]))
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(example),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only the older exporter returns None
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter's stack traces, which name local files
    return program.model_proto


def to_bytes(model: onnx.ModelProto, properties: Mapping[str, str]) -> bytes:
    """The file, with `properties` as its metadata."""
    helper.set_model_props(model, dict(properties))
    return model.SerializeToString(deterministic=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its own developers much that no user can act on."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
