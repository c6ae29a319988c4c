"""Whatever comes over the link or lies in a bundle, nothing but our own errors leaves the runtime."""

import contextlib
import gzip
import json
import tarfile
from types import SimpleNamespace

import bundles
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.external_data_helper import uses_external_data

from pi_incubator.runtime import Flags, Policy, RuntimeBundleError, read_bundle
from pi_incubator.runtime._network import Network
from pi_incubator.runtime._onnx_file import summarize
from pi_incubator.runtime.contract import check_contract, parse_contract
from pi_incubator.runtime.links import PolicyLink, RobotLink
from pi_incubator.runtime.log import StepLog
from pi_incubator.runtime.packets import OBSERVATION, TARGET, Decoder, encode, packet_size

quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)
VALUES = np.arange(5, dtype=np.float32)
NAMES = st.sampled_from(
    ["b/contract.json", "b/SHA256SUMS", "b/policy.onnx", "b/", "../x", "/x", "b/e/e.plan"]
)
CONTENTS = st.sampled_from([b"18 path=b/contract\n", b"9 size=5\n", b"a\0"])
ODD_NUMBERS = st.sampled_from([1e39, -1e39, 1e-300, 2**40, 1, 0.5])
KINDS = st.sampled_from([b"0", b"\0", b"L", b"K", b"x", b"X", b"g", b"S", b"5", b"1", b"2", b"3", b"7", b"D"])

ELSEWHERE = [
    onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL),
    onnx.TensorProto(
        name="w",
        data_location=onnx.TensorProto.EXTERNAL,
        external_data=[onnx.StringStringEntryProto(key="location", value="../secret")],
    ),
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=80) | st.binary(min_size=52, max_size=52))
@quick
def test_bytes_that_are_no_packet_are_counted(data):
    decoder = Decoder(OBSERVATION, VALUES.size)
    assert decoder.open(data) is None
    assert decoder.counts.wrong_size == (len(data) != packet_size(VALUES.size))
    assert decoder.counts.malformed == 1 - decoder.counts.wrong_size


@given(st.integers(0, 2**64 - 1), st.integers(0, 51), st.integers(1, 255))
@quick
def test_a_packet_with_one_changed_byte_is_not_taken(sequence, at, change):
    packet = bytearray(encode(OBSERVATION, sequence, VALUES, flags=7))
    decoder = Decoder(OBSERVATION, VALUES.size)
    assert decoder.open(bytes(packet))[0] == sequence
    packet[at] ^= change
    assert decoder.open(bytes(packet)) is None


packets = st.builds(
    encode,
    st.sampled_from([OBSERVATION, TARGET]),
    st.integers(0, 4) | st.integers(0, 2**64 - 1),
    st.lists(st.floats(width=32), min_size=4, max_size=6).map(lambda values: np.array(values, np.float32)),
    st.integers(0, 2**32 - 1),
)


class FromList:
    """A transport that gives what it was told to."""

    def __init__(self, entries):
        self.entries, self.sent = list(entries), []
        self.answer = self.sent.append
        self.send = self.sent.append

    def receive(self, timeout_s):
        return self.entries.pop(0) if self.entries else None

    def close(self):
        pass


@pytest.mark.parametrize("end", [PolicyLink, RobotLink])
def test_every_packet_is_counted_once(end, monkeypatch):
    contract = SimpleNamespace(observation_width=5, num_targets=5)

    @given(st.lists(st.tuples(st.binary(max_size=60) | packets, st.sampled_from("ab")), max_size=8))
    @quick
    def check(entries):
        transport = FromList(entries)
        monkeypatch.setattr("pi_incubator.runtime.links.open_transport", lambda *_, **__: transport)
        link = end("", contract)
        for _ in range(len(entries) + 1):
            found = link.receive(0.0)
            assert found is None or found.shape == (5,)
            link.send(VALUES, *([0] if end is PolicyLink else []))
        assert not transport.entries
        assert sum(vars(link.counts).values()) == len(entries)

    check()


def leaves(value, place=None, key=None):
    """(object or list, key) of every value in a parsed JSON that is neither."""
    if not isinstance(value, dict | list):
        return [(place, key)]
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for name, entry in entries for leaf in leaves(entry, value, name)]


@st.composite
def changed_contracts(draw):
    """A contract in which a number is another, and sometimes anything anything else, missing, or more."""
    raw = bundles.contract_dict(2, [("memory", 3)], sensors=4)
    numbers = [(place, key) for place, key in leaves(raw) if not isinstance(place[key], str)]
    for place, key in draw(st.lists(st.sampled_from(numbers), max_size=2)):
        place[key] = draw(st.floats() | st.none() | ODD_NUMBERS)
    raw["more"] = draw(json_values)
    change = draw(st.sampled_from(["nothing", "nothing", "another", "missing"]))
    place, key = draw(st.sampled_from(leaves(raw) or [(raw, "more")]))
    if change == "another":
        place[key] = draw(json_values | st.sampled_from(["x\ny", "\ud800"]))
    elif change == "missing":
        del place[key]
    return raw


class Zeros(Network):
    """A network whose targets are zeros."""

    provider = "zeros"

    def __init__(self, contract):
        super().__init__(contract, lambda size: np.zeros(size, np.float32))

    def run(self):
        self.target[:] = 0.0


def test_a_contract_is_refused_or_can_be_run(tmp_path_factory):
    refused = []

    @given(changed_contracts())
    @settings(quick, max_examples=250)
    @pytest.mark.filterwarnings("error")
    def check(raw):
        contract = None
        with contextlib.suppress(RuntimeBundleError):
            contract = parse_contract(json.dumps(raw).encode(), "contract.json")
        refused.append(contract is None)
        if contract is None:
            return
        policy = Policy(contract, Zeros(contract))
        for target in (
            policy.step(np.zeros(contract.observation_width, np.float32)),
            policy.step_to_safe(Flags.DEADLINE_MISSED),
        ):
            assert np.isfinite(target).all()
        StepLog(tmp_path_factory.mktemp("log"), contract, format="npz", steps_per_chunk=2).close()

    check()
    assert 0.1 < np.mean(refused) < 0.9


@given(st.binary(max_size=200) | (st.text(max_size=200) | json_values.map(json.dumps)).map(str.encode))
@quick
def test_a_text_that_is_no_contract(data):
    with pytest.raises(RuntimeBundleError):
        parse_contract(data, "contract.json")


@pytest.mark.parametrize("depth", [60, 900, 100_000])
def test_a_contract_that_is_too_deep(depth):
    """Also as a field that nobody reads: the log writes it, and comparisons go through it."""
    raw = json.dumps(bundles.contract_dict())
    deep = raw[:-1] + ', "more": ' + "[" * depth + "]" * depth + "}"
    with pytest.raises(RuntimeBundleError, match=r"is not JSON \((too deep|deeper than 50 levels)\)"):
        parse_contract(deep.encode(), "contract.json")
    with pytest.raises(RuntimeBundleError, match=r"larger than 1048576 bytes"):
        parse_contract(b" " * 2**20 + raw.encode(), "contract.json")


@st.composite
def tar_files(draw):
    """Headers of all kinds before contents that may not be what they say, in gzip, some bytes changed."""
    data = b""
    for _ in range(draw(st.integers(0, 4))):
        info = tarfile.TarInfo(draw(NAMES | st.text(max_size=5)))
        info.type = draw(KINDS)
        content = draw(st.binary(max_size=40) | CONTENTS)
        info.size = draw(st.just(len(content)) | st.integers(0, 2**40) | st.integers(-9, -1))
        with contextlib.suppress(UnicodeEncodeError):
            data += info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    data += bytes(draw(st.sampled_from([0, 512, 1024])))
    data = changed(draw, data)
    return changed(draw, gzip.compress(data)) if draw(st.booleans()) else gzip.compress(data)


def changed(draw, data):
    """`data`, perhaps with some bytes others, and perhaps cut short."""
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 2)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


def test_an_archive_is_refused_with_our_own_error(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "b.tar.gz"

    @given(tar_files())
    @settings(quick, max_examples=300)
    def check(data):
        path.write_bytes(data)
        with pytest.raises(RuntimeBundleError) as caught:
            read_bundle(path)
        assert "\n" not in str(caught.value)

    check()


def test_a_good_archive_with_changed_bytes_is_read_or_refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    bundles.write_bundle(folder / "b", bundles.mlp_onnx(hidden=4), states=[("last_action", 12)])
    bundles.write_archive(folder / "b", folder / "good.tar.gz")
    good, onnx = gzip.decompress((folder / "good.tar.gz").read_bytes()), read_bundle(folder / "b").onnx

    @given(st.data())
    @quick
    def check(data):
        (folder / "b.tar.gz").write_bytes(gzip.compress(changed(data.draw, good), 1))
        with contextlib.suppress(RuntimeBundleError):
            assert read_bundle(folder / "b.tar.gz").onnx == onnx

    check()


def test_a_network_file_with_changed_bytes_is_summarized_or_refused():
    good = bundles.mlp_onnx(hidden=4).SerializeToString()

    @given(st.data())
    @quick
    def check(data):
        with contextlib.suppress(RuntimeBundleError):
            summarize(changed(data.draw, good), "policy.onnx")

    check()


@st.composite
def onnx_graphs(draw, depth=0):
    """A graph whose nodes have attributes of all kinds, with graphs inside, weights elsewhere and loops."""
    tensors = st.sampled_from([onnx.TensorProto(name="w"), *[onnx.TensorProto(name="here")] * 6, *ELSEWHERE])
    sparse = st.builds(
        lambda values, indices: onnx.SparseTensorProto(values=values, indices=indices), tensors, tensors
    )
    contents = st.one_of(
        st.builds(dict, t=tensors),
        st.builds(dict, tensors=st.lists(tensors, max_size=2)),
        st.builds(dict, sparse_tensor=sparse),
        st.builds(dict, sparse_tensors=st.lists(sparse, max_size=2)),
        st.just({"i": 14, "f": 1.0, "s": b"Loop", "ints": [1, 2**62], "type": 1}),
    )
    if depth < 2:
        inner = onnx_graphs(depth + 1)
        contents |= st.builds(dict, g=inner) | st.builds(dict, graphs=st.lists(inner, max_size=2))
    nodes = st.builds(
        lambda operator, attributes: onnx.NodeProto(
            op_type=operator,
            name="Loop",
            attribute=[onnx.AttributeProto(name="a", **entry) for entry in attributes],
        ),
        st.sampled_from(["If", "Add", "GRU", "Identity", "Relu", "Loop", "Scan", "SequenceMap"]),
        st.lists(contents, max_size=2),
    )
    return onnx.GraphProto(
        name="g",
        node=draw(st.lists(nodes, max_size=2)),
        initializer=draw(st.lists(tensors, max_size=1)),
        sparse_initializer=draw(st.lists(sparse, max_size=1)),
    )


def messages(message):
    """A protobuf message and all inside of it, as its own library sees them."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                yield from messages(one)


def test_external_data_and_loops_are_found_wherever_they_are():
    """As the onnx package finds them in the same file."""
    found = []

    @given(onnx_graphs(), st.lists(onnx_graphs(), max_size=1))
    @settings(quick, max_examples=60)
    def check(graph, functions):
        functions = [onnx.FunctionProto(name="f", node=function.node) for function in functions]
        model = onnx.ModelProto(graph=graph, functions=functions)
        everything = list(messages(model))
        tensors = [one for one in everything if isinstance(one, onnx.TensorProto)]
        operators = {one.op_type for one in everything if isinstance(one, onnx.NodeProto)}
        summary = summarize(model.SerializeToString(), "policy.onnx")
        assert summary.has_external_data == any(map(uses_external_data, tensors))
        assert summary.has_loops == (not operators.isdisjoint({"Loop", "Scan", "SequenceMap"}))
        found.append((summary.has_external_data, summary.has_loops))

    check()
    assert len(set(found)) == 4


def test_contracts_that_are_not_changed_are_taken():
    assert check_contract(bundles.contract_dict(2, [("memory", 3)], sensors=4)).observation_width == 7
