"""What an ONNX file says about itself, read without the onnx package.

ONNX is protobuf: a message is a row of fields, each a tag (number and wire type) and a value. This walks only
the fields that can name other files or an operator set; their numbers are those of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), which may never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .errors import RuntimeBundleError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
EXTERNAL = 1  # TensorProto.data_location
MAX_DEPTH = 100  # of graphs inside graphs

# Message -> {field number: the message in it}; where a tensor may hide.
CHILDREN = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
MODEL_OPSET, MODEL_METADATA = 8, 14
NODE_OPERATOR = 4
TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 13, 14
LOOPS = ("Loop", "Scan", "SequenceMap")

IsWanted = Callable[[str, int, "int | memoryview"], bool]
"""Kind of message, number of the field, its value -> whether it is looked for."""


@dataclass
class OnnxSummary:
    """Operator sets by domain ("" is ONNX's own), metadata, external weights and loops."""

    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    has_external_data: bool = False
    has_loops: bool = False


def summarize(data: bytes, where: str) -> OnnxSummary:
    """Read the bytes of an ONNX file; `where` names it in messages.

    Raises:
        RuntimeBundleError: it is cut short, or is no ONNX file.
    """
    summary = OnnxSummary()
    try:
        view = memoryview(data)
        for number, value in _fields(view):
            if number == MODEL_OPSET:
                opset = dict(_fields(_message(value)))
                summary.opsets[_text(opset.get(1, b""))] = _whole(opset.get(2, 0))
            elif number == MODEL_METADATA:
                entry = dict(_fields(_message(value)))
                summary.metadata[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
        summary.has_external_data = _contains(_is_external, view, "model")
        summary.has_loops = _contains(_is_loop, view, "model")
    except (IndexError, ValueError):
        raise RuntimeBundleError(f"{where}: is cut short or no ONNX file; copy the bundle again") from None
    return summary


def _contains(is_wanted: IsWanted, message: memoryview, kind: str, depth: int = 0) -> bool:
    """Whether a field of a message of this kind, or of one inside of it, is wanted."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    for number, value in _fields(message):
        if is_wanted(kind, number, value):
            return True
        child = CHILDREN[kind].get(number)
        if child and _contains(is_wanted, _message(value), child, depth + 1):
            return True
    return False


def _is_external(kind: str, number: int, value: int | memoryview) -> bool:
    """Whether a tensor lies in another file."""
    says_where = number == TENSOR_DATA_LOCATION and value == EXTERNAL
    return kind == "tensor" and (number == TENSOR_EXTERNAL_DATA or says_where)


def _is_loop(kind: str, number: int, value: int | memoryview) -> bool:
    """Whether an operator may run for ever: onnxruntime cannot be stopped in it."""
    return kind == "node" and number == NODE_OPERATOR and _text(value) in LOOPS


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field: an int for a varint, otherwise its bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire_type = tag & 7
        if wire_type == VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire_type == BYTES:
            size, at = _varint(message, at)
        elif wire_type in (FIXED32, FIXED64):
            size = 4 if wire_type == FIXED32 else 8
        else:
            raise ValueError("unknown wire type")
        if at + size > len(message):
            raise ValueError("cut short")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and where the next field begins."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("number too long")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _text(value: int | memoryview | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("a number where a text belongs")
    return bytes(value).decode()


def _whole(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value
