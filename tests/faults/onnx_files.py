"""Change the ONNX file of a bundle, and let the bundle's hashes say that it is as it should be.

python onnx_files.py BUNDLE external|loop
"""

import hashlib
import json
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper


def main(bundle, kind):
    """Rewrite `bundle` in place."""
    path = bundle / "policy.onnx"
    model = onnx.load(path)
    if kind == "external":
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        onnx.external_data_helper.set_external_data(weight, "../../secret")
        weight.ClearField("raw_data")
    else:
        add_loop(model.graph)
    content = model.SerializeToString()
    path.write_bytes(content)
    contract = json.loads((bundle / "contract.json").read_text())
    contract["onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    (bundle / "contract.json").write_text(json.dumps(contract))
    listed = [line[66:] for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n" for name in listed]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def add_loop(graph):
    """A loop of 2^62 turns before everything else, on which the first output depends."""
    of_turn = [("turn", TensorProto.INT64), ("goes_on", TensorProto.BOOL), ("carried", TensorProto.FLOAT)]
    after = [("goes_on_again", TensorProto.BOOL), ("carried_again", TensorProto.FLOAT)]
    body = helper.make_graph(
        [helper.make_node("Identity", [name.removesuffix("_again")], [name]) for name, _ in after],
        "one_turn",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in of_turn],
        [helper.make_tensor_value_info(name, kind, []) for name, kind in after],
    )
    constants = [("turns", TensorProto.INT64, 2**62), ("begins", TensorProto.BOOL, True)]
    constants.append(("nothing", TensorProto.FLOAT, 0.0))
    graph.initializer.extend(helper.make_tensor(name, kind, [], [value]) for name, kind, value in constants)
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    last.output[list(last.output).index(graph.output[0].name)] = "before_the_loop"
    loop = helper.make_node("Loop", ["turns", "begins", "nothing"], ["zero"], body=body)
    graph.node.extend([loop, helper.make_node("Add", ["before_the_loop", "zero"], [graph.output[0].name])])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
