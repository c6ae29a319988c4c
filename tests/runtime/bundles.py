"""Bundles made by hand for the tests: networks of known weights, written with the onnx package alone."""

import hashlib
import io
import json
import tarfile
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTROL_HZ = 50.0
SENSORS, COMMANDS = 30, 3
WIDTH = SENSORS + COMMANDS


def contract_dict(
    num_joints=12, states=(), *, onnx_bytes=b"", opset=18, sensors=SENSORS, max_rate=None, hz=CONTROL_HZ
):
    """A contract as the exporter writes it; targets lie within -0.8 and 0.8, the safe ones at 0.1."""
    return {
        "schema_version": 1,
        "name": "test_policy",
        "task": "test",
        "network": "mlp",
        "precision": "fp32",
        "control_hz": hz,
        "observation": {
            "width": sensors + COMMANDS,
            "terms": [
                term("sensors", sensors, "rad", "sensor", -5.0, 5.0),
                term("command", COMMANDS, "m/s, m/s, rad/s", "command", None, None),
            ],
        },
        "states": [{"name": name, "width": width} for name, width in states],
        "joints": [
            {
                "name": f"joint_{i}",
                "stiffness": 35.0,
                "damping": 0.5,
                "default_position_rad": 0.1,
                "action_scale": 0.5,
                "target_low": -0.8,
                "target_high": 0.8,
                "max_rate_per_s": max_rate,
            }
            for i in range(num_joints)
        ],
        "safe_target": [0.1] * num_joints,
        "commands": ["forward_m_s", "sideways_m_s", "turn_rad_s"],
        "onnx": {"file": "policy.onnx", "sha256": hashlib.sha256(onnx_bytes).hexdigest(), "opset": opset},
        "gates": {},
    }


def term(name, width, unit, kind, low, high):
    return {"name": name, "width": width, "unit": unit, "kind": kind, "low": low, "high": high}


def mlp_onnx(width=WIDTH, num_joints=12, hidden=256, activation="Tanh", *, memory=True, opset=18, seed=0):
    """observation (and last action) -> 3 hidden layers -> clipped targets (and the last action)."""
    rng = np.random.default_rng(seed)
    graph = Graph()
    widths = [width + num_joints * memory, hidden, hidden, hidden, num_joints]
    value = graph.add("Concat", "observation", "last_action_in", axis=1) if memory else "observation"
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        weight = graph.constant(rng.normal(size=(fan_in, fan_out)) / fan_in**0.5)
        value = graph.add("Gemm", value, weight, graph.constant(rng.normal(size=fan_out) * 0.1))
        value = graph.add(activation, value) if i < 3 else value
    clip = graph.constant(np.array(-0.8)), graph.constant(np.array(0.8))
    graph.add("Clip", value, *clip, out="target")
    states = [("last_action", num_joints)] if memory else []
    if memory:
        graph.add("Identity", "target", out="last_action_out")
    return graph.model(width, num_joints, states, opset)


def gru_onnx(width=WIDTH, num_joints=12, hidden=256, *, opset=18, seed=0):
    """observation and hidden state -> GRU cell -> clipped targets and the next hidden state."""
    rng = np.random.default_rng(seed)
    graph = Graph()
    sequence = graph.add("Unsqueeze", "observation", graph.constant(np.array([0]), np.int64))
    before = graph.add("Unsqueeze", "hidden_in", graph.constant(np.array([0]), np.int64))
    inward = graph.constant(rng.normal(size=(1, 3 * hidden, width)) / width**0.5)
    recurrent = graph.constant(rng.normal(size=(1, 3 * hidden, hidden)) / hidden**0.5)
    bias = graph.constant(rng.normal(size=(1, 6 * hidden)) * 0.1)
    graph.nodes.append(
        helper.make_node(
            "GRU",
            [sequence, inward, recurrent, bias, "", before],
            ["", "after"],
            hidden_size=hidden,
            linear_before_reset=1,
        )
    )
    graph.add("Squeeze", "after", graph.constant(np.array([0]), np.int64), out="hidden_out")
    head = graph.constant(rng.normal(size=(hidden, num_joints)) / hidden**0.5)
    value = graph.add("MatMul", "hidden_out", head)
    graph.add("Clip", value, graph.constant(np.array(-0.8)), graph.constant(np.array(0.8)), out="target")
    return graph.model(width, num_joints, [("hidden", hidden)], opset)


class Graph:
    """Nodes and constants under names that are counted up."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, array, dtype=np.float32):
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def add(self, op, *inputs, out=None, **attributes):
        out = out or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def model(self, width, num_joints, states, opset):
        inputs = [("observation", width), *((f"{name}_in", size) for name, size in states)]
        outputs = [("target", num_joints), *((f"{name}_out", size) for name, size in states)]
        graph = helper.make_graph(self.nodes, "policy", tensors(inputs), tensors(outputs), self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def tensors(entries):
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in entries
    ]


def write_bundle(folder, model, contract=None, **changes):
    """A bundle's folder for an ONNX model, or for the bytes of one; `changes` go to `contract_dict`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    if contract is None:
        contract = contract_dict(onnx_bytes=data, **changes)
    (folder / "policy.onnx").write_bytes(data)
    (folder / "contract.json").write_text(json.dumps(contract, sort_keys=True, indent=2) + "\n")
    write_sums(folder)
    return folder


def write_sums(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def write_archive(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def archive_of(path, members):
    """An archive with the members (name, bytes or a link's target), however wrong their names."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def mlp_bundle(folder, **changes):
    return write_bundle(folder, mlp_onnx(), states=[("last_action", 12)], **changes)


def gru_bundle(folder, **changes):
    return write_bundle(folder, gru_onnx(), states=[("hidden", 256)], **changes)


def with_external_data(model, folder):
    """The bytes of `model` saved with its weights in another file."""
    onnx.save(
        model, folder / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return (folder / "outside.onnx").read_bytes()
