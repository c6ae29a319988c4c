"""A bundle is read whole and unchanged, or not at all, and the one line says why."""

import hashlib
import json
import subprocess

import bundles
import numpy as np
import onnx
import pytest
from onnx import helper

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
    refused(tmp_path / "x.tar.gz", "x.tar.gz: ")


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


def test_external_data_inside_a_branch():
    """A tensor of a graph that is an attribute of a node can name a file too."""
    hidden = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    branch = helper.make_graph([], "branch", [], [], [hidden])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    assert summarize(model.SerializeToString(), "x").has_external_data


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


def test_an_operator_that_onnxruntime_does_not_have(tmp_path):
    graph = bundles.Graph()
    graph.add("NoSuchOperator", "observation", out="target")
    model = graph.model(bundles.WIDTH, 12, [], 18)
    refused(
        bundles.write_bundle(tmp_path / "b", model), "policy.onnx: refused by onnxruntime .*NoSuchOperator"
    )


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
