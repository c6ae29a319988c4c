"""A bundle is read whole and unchanged, or not at all, and the one line says why."""

import hashlib
import json
import subprocess

import bundles
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pi_incubator.runtime import Policy, RuntimeBundleError, read_bundle, read_contract
from pi_incubator.runtime._onnx_file import summarize
from pi_incubator.runtime.contract import check_contract
from tests.faults import onnx_files

OBSERVATION = np.linspace(-1, 1, bundles.WIDTH, dtype=np.float32)


@pytest.fixture
def folder(tmp_path):
    return bundles.mlp_bundle(tmp_path / "bundle")


def refused(path, message):
    with pytest.raises(RuntimeBundleError, match=message) as caught:
        Policy.load(path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_folder_and_archive_are_the_same(folder, tmp_path):
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    archive = bundles.write_archive(folder, tmp_path / "bundle.tar.gz")
    assert read_bundle(archive).onnx == read_bundle(str(folder)).onnx
    np.testing.assert_array_equal(
        Policy.load(archive).step(OBSERVATION), Policy.load(folder).step(OBSERVATION)
    )


def test_contract_is_read(folder):
    contract = read_contract(folder / "contract.json")
    assert (contract.observation_width, contract.num_targets, contract.control_hz) == (33, 12, 50.0)
    assert contract.terms[1].kind == "command"
    assert contract.terms[1].low is None
    assert contract.joints[3].target_high == 0.8
    assert contract.raw["gates"] == {}


def test_failed_gates_are_seen(folder):
    assert not read_bundle(folder).failed_gates
    (folder / "FAILED_GATES").write_text("latency\n")
    assert read_bundle(folder).failed_gates


@pytest.mark.parametrize("name", ["policy.onnx", "contract.json", "README.md"])
def test_a_changed_file(folder, name):
    (folder / "README.md").write_text("how to run it")
    bundles.write_sums(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, f"{name}: SHA-256 .* is not the .* of SHA256SUMS; copy or export the bundle again")


def test_every_changed_bit_of_the_sums_is_seen(folder):
    content = (folder / "SHA256SUMS").read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1
        (folder / "SHA256SUMS").write_bytes(changed)
        with pytest.raises(RuntimeBundleError):
            read_bundle(folder)


@pytest.mark.parametrize("name", ["policy.onnx", "contract.json", "SHA256SUMS"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name}: ")


@pytest.mark.parametrize("line", ["hello", "0" * 63 + "  x", "0" * 64 + " x", "0" * 64 + "  "])
def test_a_line_that_is_none_of_sha256sum(folder, line):
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(line + "\n")
    refused(folder, "SHA256SUMS: .* is no line of sha256sum; copy or export the bundle again")


def test_the_contract_must_be_listed(folder):
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    (folder / "SHA256SUMS").write_text(sums[1] + "\n")
    assert "policy.onnx" in sums[1]
    refused(folder, "does not list contract.json")


def test_a_network_that_is_not_the_contracts(folder):
    (folder / "policy.onnx").write_bytes(bundles.mlp_onnx(seed=1).SerializeToString())
    bundles.write_sums(folder)
    refused(folder, "policy.onnx: SHA-256 .* is not the contract's")


def test_no_bundle(tmp_path):
    refused(tmp_path / "none", "none: cannot be read .No such file")
    (tmp_path / "x.tar.gz").write_bytes(b"not gzip")
    refused(
        tmp_path / "x.tar.gz", r"x.tar.gz: cannot be read \(Not a gzipped file.*\); name a bundle's folder"
    )


@pytest.mark.parametrize("is_archive", [False, True])
def test_engines_are_the_plans_in_their_folder(folder, tmp_path, is_archive):
    files = {"engines/a.plan": b"A", "engines/b.txt": b"B", "c.plan": b"C"}
    (folder / "engines").mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = bundles.write_archive(folder, tmp_path / "b.tar.gz") if is_archive else folder
    assert read_bundle(path).engines == {"a.plan": b"A"}


def test_operators_of_onnxruntime_are_permitted(tmp_path):
    """Its quantizer writes them; their version is not ONNX's."""
    model = bundles.mlp_onnx()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert Policy.load(bundles.write_bundle(tmp_path / "b", model, states=[("last_action", 12)]))


def test_a_contract_without_gates(folder):
    raw = bundles.contract_dict()
    del raw["gates"]
    assert check_contract(raw).num_targets == 12


def test_a_long_value_is_shown_by_its_beginning():
    raw = bundles.contract_dict()
    raw["commands"] = list(range(1000))
    with pytest.raises(
        RuntimeBundleError, match=r"commands: \[0, 1, 2, .{0,60}\.\.\. is not a list of texts"
    ):
        check_contract(raw)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_a_truncated_archive(folder, tmp_path, keep):
    archive = bundles.write_archive(folder, tmp_path / "bundle.tar.gz")
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data))])
    refused(archive, r"bundle.tar.gz: (is cut short|cannot be read)")


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.999])
def test_a_truncated_network(tmp_path, keep):
    data = bundles.mlp_onnx().SerializeToString()
    data = data[: int(keep * len(data))]
    path = bundles.write_bundle(tmp_path / "b", data, states=[("last_action", 12)])
    refused(path, "policy.onnx: is cut short or no ONNX file")


@pytest.mark.parametrize("name", ["/etc/passwd", "top/../../x", "..", "top\\..\\x"])
def test_an_archive_that_points_out(tmp_path, name):
    refused(bundles.archive_of(tmp_path / "b.tar.gz", [(name, b"x")]), "points out of the bundle")


def test_an_archive_with_a_link_or_two_folders(tmp_path):
    link = bundles.archive_of(tmp_path / "b.tar.gz", [("top/policy.onnx", "/etc/passwd")])
    refused(link, "top/policy.onnx is a link")
    two = bundles.archive_of(tmp_path / "c.tar.gz", [("a/x", b""), ("b/x", b"")])
    refused(two, "does not hold one folder")


def test_a_folder_that_points_out(folder, tmp_path):
    (tmp_path / "outside").write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(f"{sums}{digest}  ../outside\n")
    refused(folder, "outside' points out of the bundle")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "SHA256SUMS").write_text(f"{sums}{digest}  link\n")
    refused(folder, "link: points out of the bundle")


def test_a_folder_with_names_that_are_none(folder):
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(f"{sums}{'0' * 64}  a\0b\n")
    refused(folder, "points out of the bundle")
    (folder / "circle").symlink_to("circle")
    (folder / "SHA256SUMS").write_text(f"{sums}{'0' * 64}  circle\n")
    refused(folder, "circle.*cannot be read|cannot be read .*circle")


def test_an_archive_that_unpacks_to_too_much(folder, tmp_path, monkeypatch):
    archive = bundles.write_archive(folder, tmp_path / "bundle.tar.gz")
    monkeypatch.setattr("pi_incubator.runtime.bundle.MAX_BUNDLE_BYTES", 1000)
    refused(archive, "holds more than 1000 bytes")


def test_external_data(tmp_path):
    data = bundles.with_external_data(bundles.mlp_onnx(), tmp_path)
    path = bundles.write_bundle(tmp_path / "b", data, states=[("last_action", 12)])
    refused(path, "policy.onnx: its weights lie in another file; export it with external_data=False")


OUTSIDE = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
LOCATION = onnx.TensorProto(name="w", external_data=[onnx.StringStringEntryProto(key="location", value="x")])
VALUES = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
INDICES = helper.make_tensor("i", TensorProto.INT64, [2], [0, 1])


def graph_of(nodes=(), **fields):
    return onnx.GraphProto(node=nodes, name="g", **fields)


def with_attribute(**fields):
    """A graph of one node that has an attribute."""
    return graph_of([onnx.NodeProto(op_type="If", attribute=[onnx.AttributeProto(name="a", **fields)])])


def sparse_with(tensor, at):
    return onnx.SparseTensorProto(
        values=tensor if at == 1 else VALUES, indices=tensor if at == 2 else INDICES
    )


PLACES_OF_A_TENSOR = {
    "initializer": lambda tensor: graph_of(initializer=[VALUES, tensor]),
    "values of a sparse initializer": lambda t: graph_of(sparse_initializer=[sparse_with(t, 1)]),
    "indices of a sparse initializer": lambda t: graph_of(sparse_initializer=[sparse_with(t, 2)]),
    "attribute": lambda tensor: with_attribute(t=tensor),
    "attribute of tensors": lambda tensor: with_attribute(tensors=[VALUES, tensor]),
    "sparse attribute": lambda tensor: with_attribute(sparse_tensor=sparse_with(tensor, 1)),
    "sparse attributes": lambda tensor: with_attribute(sparse_tensors=[sparse_with(tensor, 2)]),
    "graph": lambda tensor: with_attribute(g=graph_of(initializer=[tensor])),
    "second of two graphs": lambda t: with_attribute(graphs=[graph_of(), graph_of(initializer=[t])]),
}


def summary_of(graph, functions=()):
    model = onnx.ModelProto(ir_version=10, graph=graph, functions=functions)
    return summarize(model.SerializeToString(), "policy.onnx")


@pytest.mark.parametrize("place", PLACES_OF_A_TENSOR)
def test_external_data_are_seen_wherever_a_tensor_may_be(place):
    """The file format permits each of these places, whether an operator uses it or not."""
    graph = PLACES_OF_A_TENSOR[place]
    assert summary_of(graph(OUTSIDE)).has_external_data
    assert summary_of(graph(LOCATION)).has_external_data
    assert not summary_of(graph(VALUES)).has_external_data
    functions = [onnx.FunctionProto(name="f", node=graph(OUTSIDE).node)]
    assert summary_of(graph_of(), functions).has_external_data == bool(graph(OUTSIDE).node)


@pytest.mark.parametrize("operator", ["Loop", "Scan", "SequenceMap", "Looping", "If", ""])
def test_a_loop_is_seen_wherever_a_node_may_be(operator):
    node = onnx.NodeProto(op_type=operator, name="Loop", input=["Loop"], output=["Scan"])
    graph = graph_of([onnx.NodeProto(op_type="Identity"), node])
    is_loop = operator in ("Loop", "Scan", "SequenceMap")
    for summary in (
        summary_of(graph),
        summary_of(with_attribute(g=graph)),
        summary_of(with_attribute(graphs=[graph])),
        summary_of(graph_of(), [onnx.FunctionProto(name="Loop", node=[node])]),
    ):
        assert summary.has_loops == is_loop
        assert not summary.has_external_data


@pytest.mark.parametrize(("levels", "is_read"), [(1, True), (33, True), (34, False), (2000, False)])
def test_graphs_inside_graphs(levels, is_read):
    """Graph, node and attribute are three messages of the 100 that may lie in each other; so is the model.

    Protobuf's own limit is 100 too: onnxruntime does not read more either.
    """
    data = graph_of([onnx.NodeProto(op_type="Loop")]).SerializeToString()
    for _ in range(levels - 1):
        attribute = length_delimited(6, data)  # g
        data = length_delimited(1, length_delimited(5, attribute))
    data = length_delimited(7, data)
    if is_read:
        assert summarize(data, "x").has_loops
    else:
        with pytest.raises(RuntimeBundleError, match="x: is cut short or no ONNX file"):
            summarize(data, "x")


def length_delimited(number, content):
    """A field of protobuf whose value is bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number):
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


@pytest.mark.parametrize("version", [0, 1, 127, 128, 300, 2**31, 2**63 - 1])
def test_numbers_of_any_length_are_read(version):
    """Fields that are unknown to us, of each kind, are passed over."""
    unknown = [varint(200 << 3) + varint(2**63), varint(201 << 3 | 1) + b"\xff" * 8]
    unknown += [length_delimited(202, b"\xff" * 300), varint(203 << 3 | 5) + b"\xff" * 4]
    model = onnx.ModelProto(opset_import=[onnx.OperatorSetIdProto(domain="a", version=version)])
    for extra in (b"", *unknown, b"".join(unknown)):
        data = extra + model.SerializeToString() + extra
        assert onnx.ModelProto.FromString(data).opset_import[0].version == version
        assert summarize(data, "x").opsets == {"a": version}


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",  # a number that goes on
        b"\x40" + b"\xff" * 10 + b"\x01",  # more than 64 bits
        varint(8 << 3 | 3),  # a group, which ONNX does not have
        varint(8 << 3 | 2) + b"\x05abcd",
        varint(7 << 3 | 1) + bytes(7),
        varint(7 << 3 | 5) + bytes(3),
        varint(7 << 3) + b"\x01",  # a number where the graph belongs
        varint(8 << 3) + b"\x01",
        varint(14 << 3) + b"\x01",
        length_delimited(8, varint(1 << 3) + b"\x01"),  # an operator set whose domain is a number
        length_delimited(8, length_delimited(2, b"18")),  # and one whose version is a text
        length_delimited(14, length_delimited(1, b"\xff")),  # no UTF-8
        length_delimited(7, length_delimited(1, varint(4 << 3) + b"\x01")),  # an operator that is a number
    ],
)
def test_bytes_that_are_no_onnx_file(data):
    with pytest.raises(RuntimeBundleError, match=r"^x: is cut short or no ONNX file; copy the bundle again$"):
        summarize(data, "x")


def with_shape(place, dims):
    """A network that copies 12 of its inputs, with the shape of an input or output as it says it is."""
    graph = bundles.Graph()
    graph.add("Slice", "observation", *(graph.constant([i], np.int64) for i in (0, 12, 1)), out="target")
    model = graph.model(bundles.WIDTH, 12, [], 18)
    value = {"input": model.graph.input, "output": model.graph.output}[place][0]
    del value.type.tensor_type.shape.dim[:]
    for size in dims:
        value.type.tensor_type.shape.dim.add(dim_value=size)
    return model


@pytest.mark.parametrize("batch", [1, 2])
def test_a_network_of_a_fixed_batch_is_of_one(tmp_path, batch):
    path = bundles.write_bundle(tmp_path / "b", with_shape("input", [batch, bundles.WIDTH]))
    if batch == 1:
        np.testing.assert_array_equal(Policy.load(path).step(OBSERVATION), OBSERVATION[:12].clip(-0.8, 0.8))
    else:
        refused(path, r"input observation is tensor\(float\) \[2, 33\], not the contract's .* \[1, 33\]")


def that_computes(operator, *constants, **attributes):
    """A network with the sum of what an operator makes of constants in its targets."""
    graph = bundles.Graph()
    inputs = [graph.constant(value, dtype) for value, dtype in constants]
    total = graph.add("ReduceSum", graph.add(operator, *inputs, **attributes), keepdims=0)
    sensors = graph.add("Slice", "observation", *(graph.constant([i], np.int64) for i in (0, 12, 1)))
    graph.add("Add", sensors, total, out="target")
    return graph.model(bundles.WIDTH, 12, [], 18)


def with_weight(dims):
    """A network with 12 numbers that say that they have another shape."""
    model = that_computes("Identity", (np.zeros(12), np.float32))
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


ABSURD = {
    "input of 2^62 values": with_shape("input", [1, 2**62]),
    "batch of 2^62": with_shape("input", [2**62, bundles.WIDTH]),
    "batch of 0": with_shape("input", [0, bundles.WIDTH]),
    "input without a shape": with_shape("input", []),
    "input of 9 axes": with_shape("input", [1] * 9),
    "weight of 2^40 values": with_weight([2**40]),
    "weight of 2^96 values": with_weight([2**32] * 3),
    "weight below 0": with_weight([-12]),
    "weight of nothing": with_weight([2**62, 0]),
    "2^50 zeros": that_computes("ConstantOfShape", ([2**50], np.int64)),
    "fewer than no zeros": that_computes("ConstantOfShape", ([-5], np.int64)),
    "2^40 copies": that_computes("Expand", ([1.0], np.float32), ([2**40], np.int64)),
    "a shape that does not fit": that_computes("Reshape", (np.zeros(12), np.float32), ([5, 7], np.int64)),
    "an index that is not there": that_computes("Gather", (np.zeros(3), np.float32), ([7], np.int64)),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_a_network_of_absurd_shapes_is_refused(tmp_path, kind):
    """By us or by onnxruntime, before its first step, in one line."""
    path = bundles.write_bundle(tmp_path / "b", ABSURD[kind])
    refused(path, r"policy.onnx: (refused by onnxruntime|input observation is .*, not the contract's)")


def test_an_endless_loop_is_refused_before_it_runs(folder):
    """Its hashes are right, and onnxruntime would never return."""
    onnx_files.main(folder, "loop")
    refused(folder, r"policy\.onnx: has a loop, which may never end; export the policy again")


def test_summary_is_what_onnx_reads():
    model = bundles.mlp_onnx(opset=17)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    helper.set_model_props(model, {"contract": "{}", "joint_names": "a,b"})
    summary = summarize(model.SerializeToString(), "x")
    assert summary.opsets == {"": 17, "com.microsoft": 1}
    assert summary.metadata == {"contract": "{}", "joint_names": "a,b"}
    assert not summary.has_external_data


def test_opset_of_the_network(tmp_path):
    states = [("last_action", 12)]
    refused(
        bundles.write_bundle(tmp_path / "a", bundles.mlp_onnx(opset=17), states=states),
        "operator set 17 is not the contract's 18",
    )
    refused(
        bundles.write_bundle(tmp_path / "b", bundles.mlp_onnx(opset=99), states=states, opset=99),
        "onnx.opset: 99 is not from 13 to 23",
    )
    model = bundles.mlp_onnx()
    model.opset_import.append(helper.make_opsetid("org.elsewhere", 1))
    refused(
        bundles.write_bundle(tmp_path / "c", model, states=states), "operator set 'org.elsewhere' is unknown"
    )


def network_of(operator):
    """A network of one operator."""
    graph = bundles.Graph()
    graph.add(operator, "observation", out="target")
    return graph.model(bundles.WIDTH, 12, [], 18)


def test_an_operator_that_onnxruntime_does_not_have(tmp_path):
    path = bundles.write_bundle(tmp_path / "b", network_of("NoSuchOperator"))
    refused(path, "policy.onnx: refused by onnxruntime .*NoSuchOperator")


def test_a_long_reason_of_onnxruntime_is_cut(tmp_path):
    """It quotes names of the file, which may be of any length; the fix is still told."""
    path = bundles.write_bundle(tmp_path / "b", network_of("NoSuchOperator" * 100))
    refused(path, r"refused by onnxruntime \(.{197}\.\.\.\); export the policy again, or update onnxruntime$")


@pytest.mark.parametrize("agrees", [True, False])
def test_the_contract_inside_the_network(tmp_path, agrees):
    inside = bundles.contract_dict(states=[("last_action", 12)])
    del inside["onnx"], inside["gates"]
    if not agrees:
        inside["safe_target"][0] = 0.2
    model = bundles.mlp_onnx()
    helper.set_model_props(model, {"contract": json.dumps(inside)})
    path = bundles.write_bundle(tmp_path / "b", model, states=[("last_action", 12)])
    if agrees:
        Policy.load(path)
    else:
        refused(path, "the contract inside is not that of contract.json")


@pytest.mark.parametrize("inside", ["[" * 100_000, "{", " " * 2**20 + "{}"])
def test_a_text_inside_the_network_that_is_no_contract(tmp_path, inside):
    model = bundles.mlp_onnx()
    helper.set_model_props(model, {"contract": inside})
    path = bundles.write_bundle(tmp_path / "b", model, states=[("last_action", 12)])
    refused(path, "policy.onnx: the contract inside is not that of contract.json")


WRONG_FIELDS = [
    ("schema_version", 2, "schema_version: 2 is newer than this runtime's 1; update the runtime"),
    ("schema_version", "1", "schema_version: '1' is not a whole number"),
    ("control_hz", 0, "control_hz: 0.0 is not above 0"),
    ("control_hz", 0.0099, "control_hz: 0.0099 is not from 0.01 to 100000"),
    ("control_hz", 100_001, "control_hz: 100001.0 is not from 0.01 to 100000"),
    ("control_hz", True, "control_hz: True is not a number"),
    ("control_hz", None, "control_hz: None is not a number"),
    ("name", "", "name: '' is not a text"),
    ("observation.width", 34, "observation.width: 34 is not the terms' sum, 33"),
    ("observation.terms", [], r"observation.terms: \[\] is not a list with at least one entry"),
    ("observation.terms.0.low", 9, r"observation.terms\[0\].low: 9.0 is not at most high"),
    ("observation.terms.1.name", "sensors", "observation.terms: .* in which every name is another"),
    ("observation.terms.0.kind", "guess", r"observation.terms\[0\].kind: 'guess' is not sensor or command"),
    ("joints", {}, "joints: {} is not a list"),
    ("joints.2", 3, r"joints\[2\]: 3 is not an object"),
    ("joints.1.max_rate_per_s", 0, r"joints\[1\].max_rate_per_s: 0.0 is not above 0"),
    ("joints.1.name", "joint_0", "joints: .* in which every name is another"),
    ("safe_target", [0.0] * 11, "safe_target: '11 values' is not one value for each of 12 joints"),
    ("safe_target", [float("nan")] * 12, "safe_target: .* is not a list of numbers"),
    ("safe_target.4", 0.80001, "safe_target: 0.80001 is not within the limits of joint_4, -0.8 to 0.8"),
    ("safe_target.4", -0.80001, "safe_target: -0.80001 is not within the limits of joint_4, -0.8 to 0.8"),
    ("states.0.width", 2**22 + 1, "states: 4194305 is not at most 4194304 values"),
    ("onnx.opset", 12, "onnx.opset: 12 is not from 13 to 23"),
    ("onnx.opset", 24, "onnx.opset: 24 is not from 13 to 23"),
    ("onnx.file", "..", "onnx.file: '..' is not a plain file name"),
    ("name", "two\nlines", "name: 'two.nlines' is not a text"),
    ("name", "\ud800", "name: '.ud800' is not a text"),
    ("commands", ["a\nb"], "commands: .* is not a list of texts"),
    ("joints.0.target_low", 0.9, r"joints\[0\].target_low: 0.9 is not at most target_high .0.8."),
    ("safe_target.4", 0.9, "safe_target: 0.9 is not within the limits of joint_4, -0.8 to 0.8"),
    ("states", [{"name": "a", "width": 0}], r"states\[0\].width: 0 is not a whole number of at least 1"),
    ("onnx.file", "../policy.onnx", "onnx.file: '../policy.onnx' is not a plain file name"),
    ("control_hz", 10**400, "control_hz: 1000.* is not a number"),
    ("gates", 5, "gates: 5 is not an object"),
    ("gates", {"parity": 5}, "gates.parity: 5 is not an object"),
]


def contract_with(field, value):
    raw = bundles.contract_dict(states=[("memory", 3)])
    *parents, last = [int(part) if part.isdecimal() else part for part in field.split(".")]
    place = raw
    for parent in parents:
        place = place[parent]
    place[last] = value
    return raw


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", 1),
        ("control_hz", 0.01),
        ("control_hz", 0.5),
        ("control_hz", 100_000),
        ("onnx.opset", 13),
        ("onnx.opset", 23),
        ("states.0.width", 2**22),
        ("joints.1.max_rate_per_s", 0.5),
        ("joints.1.target_low", 0.1),
        ("observation.terms.0.low", 5.0),
        ("safe_target.4", 0.8 + 5e-7),
        ("safe_target.4", -0.8 - 5e-7),
    ],
)
def test_the_limits_of_a_field_belong_to_it(field, value):
    assert check_contract(contract_with(field, value)).raw


def test_the_widest_observation():
    sensors = 2**22 - bundles.COMMANDS
    assert check_contract(bundles.contract_dict(sensors=sensors)).observation_width == 2**22
    with pytest.raises(RuntimeBundleError, match=r"observation.width: 4194305 is not at most 4194304 values"):
        check_contract(bundles.contract_dict(sensors=sensors + 1))


def test_a_safe_target_that_float32_cannot_hold():
    """Also where the joint's own limits permit it: the robot would be sent infinity."""
    for limit in (None, 1e300):
        raw = contract_with("safe_target.4", 1e39)
        raw["joints"][4] |= {"target_low": None, "target_high": limit}
        with pytest.raises(RuntimeBundleError, match=r"safe_target: 1e\+39 is not within the limits"):
            check_contract(raw)
        raw["safe_target"][4] = -1e39
        raw["joints"][4] |= {"target_low": limit and -limit, "target_high": None}
        with pytest.raises(RuntimeBundleError, match=r"safe_target: -1e\+39 is not within the limits"):
            check_contract(raw)


def test_no_contract(tmp_path):
    with pytest.raises(RuntimeBundleError, match=r"contract.json: cannot be read .No such file or directory"):
        read_contract(tmp_path / "contract.json")


@pytest.mark.parametrize(("field", "value", "message"), WRONG_FIELDS)
def test_a_wrong_field(field, value, message):
    raw = contract_with(field, value)
    with pytest.raises(RuntimeBundleError, match=f"^contract.json: {message}"):
        check_contract(raw)


@pytest.mark.parametrize(
    "field", ["schema_version", "joints", "safe_target", "observation", "onnx", "control_hz"]
)
def test_a_missing_field(field):
    raw = bundles.contract_dict()
    del raw[field]
    with pytest.raises(RuntimeBundleError, match=f"^contract.json: {field}: missing"):
        check_contract(raw)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"schema_version": 1e999}', "\xff"])
def test_a_contract_that_is_none(folder, text):
    (folder / "contract.json").write_bytes(text.encode("latin-1"))
    bundles.write_sums(folder)
    refused(folder, "contract.json: ")
