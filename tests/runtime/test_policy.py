"""The policy acts like the network, and never on an observation or a target that is not to be trusted."""

import subprocess
import sys
import time

import bundles
import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx.reference import ReferenceEvaluator

from pi_incubator.runtime import Flags, ObservationError, Policy, RuntimeBundleError
from pi_incubator.runtime._network import Network
from pi_incubator.runtime.contract import check_contract

SAFE = np.full(12, 0.1, np.float32)
STATE = {"mlp": "last_action", "gru": "hidden"}


@pytest.fixture(scope="module", params=["mlp", "gru"])
def bundle(request, tmp_path_factory):
    make = {"mlp": bundles.mlp_bundle, "gru": bundles.gru_bundle}[request.param]
    return request.param, make(tmp_path_factory.mktemp(request.param))


@pytest.fixture
def observations():
    return np.random.default_rng(0).normal(size=(50, bundles.WIDTH)).astype(np.float32)


def reference_targets(path, state, width, observations):
    """What the onnx package's own evaluator, another implementation, computes; states fed back by hand."""
    run = ReferenceEvaluator(onnx.load(path / "policy.onnx")).run
    value = np.zeros((1, width), np.float32)
    targets = []
    for observation in observations:
        target, value = run(None, {"observation": observation[None], f"{state}_in": value})
        targets.append(target[0])
    return np.stack(targets)


def test_acts_like_the_network(bundle, observations):
    kind, path = bundle
    policy = Policy.load(path)
    expected = reference_targets(path, STATE[kind], policy.contract.states[0].width, observations)
    found = np.stack([policy.step(observation).copy() for observation in observations])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert policy.flags == 0
    assert len({row.tobytes() for row in found}) == len(observations)


def test_reset_starts_the_episode_again(bundle, observations):
    policy = Policy.load(bundle[1])
    first = [policy.step(observation).copy() for observation in observations]
    policy.reset()
    assert not next(iter(policy.states().values())).any()
    again = [policy.step(observation).copy() for observation in observations]
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("index", "value", "flag"),
    [
        (0, np.nan, Flags.NAN_OBSERVATION),
        (bundles.WIDTH - 1, np.nan, Flags.NAN_OBSERVATION),
        (0, 5.01, Flags.OUT_OF_RANGE),
        (0, -5.01, Flags.OUT_OF_RANGE),
        (0, np.inf, Flags.OUT_OF_RANGE),
        (bundles.WIDTH - 1, -np.inf, Flags.OUT_OF_RANGE),
    ],
)
def test_a_bad_observation_is_safe_and_not_remembered(bundle, observations, index, value, flag):
    policy, undisturbed = Policy.load(bundle[1]), Policy.load(bundle[1])
    for observation in observations[:10]:
        policy.step(observation)
        undisturbed.step(observation)
    bad = observations[10].copy()
    bad[index] = value
    np.testing.assert_array_equal(policy.step(bad), SAFE)
    assert policy.flags == flag
    np.testing.assert_array_equal(policy.step(observations[11]), undisturbed.step(observations[11]))
    assert policy.flags == 0


def test_limits_belong_to_the_range(bundle):
    policy = Policy.load(bundle[1])
    policy.step(np.full(bundles.WIDTH, 5.0, np.float32))
    assert policy.flags == 0


@pytest.mark.filterwarnings("error")
def test_a_target_that_is_no_number_is_safe_and_its_state_let_go(tmp_path, observations):
    """The target is 1 / the first sensor; where that is 0, infinite, and the state a NaN."""
    graph = bundles.Graph()
    first = graph.add("Slice", "observation", *(graph.constant([i], np.int64) for i in (0, 1, 1)))
    graph.add("Reciprocal", first, out="target")
    graph.add("Mul", "target", graph.constant([[0.0]]), out="value")
    graph.add("Add", "value", graph.add("Add", "count_in", graph.constant([[1.0]])), out="count_out")
    path = bundles.write_bundle(
        tmp_path / "b", graph.model(bundles.WIDTH, 1, [("count", 1)], 18), states=[("count", 1)], num_joints=1
    )
    policy = Policy.load(path)
    good, bad = observations[0].copy(), observations[0].copy()
    good[0], bad[0] = 2.0, 0.0
    np.testing.assert_array_equal(policy.step(good), [0.5])
    np.testing.assert_array_equal(policy.step(bad), SAFE[:1])
    assert policy.flags == Flags.NAN_TARGET
    np.testing.assert_array_equal(policy.states()["count"], [1.0])
    np.testing.assert_array_equal(policy.step(good), [0.5])
    np.testing.assert_array_equal(policy.states()["count"], [2.0])


def test_targets_stay_within_the_contracts_limits(tmp_path):
    graph = bundles.Graph()
    graph.add("Slice", "observation", *(graph.constant([i], np.int64) for i in (0, 12, 1)), out="target")
    path = bundles.write_bundle(tmp_path / "b", graph.model(bundles.WIDTH, 12, [], 18))
    policy = Policy.load(path)
    target = policy.step(np.linspace(-4, 4, bundles.WIDTH, dtype=np.float32))
    np.testing.assert_array_equal(
        target, np.clip(np.linspace(-4, 4, bundles.WIDTH), -0.8, 0.8)[:12].astype("f4")
    )


@pytest.mark.parametrize("by", ["contract", "argument"])
def test_rate_limit(tmp_path, observations, by):
    path = bundles.mlp_bundle(tmp_path / "b", max_rate=1.0 if by == "contract" else None)
    policy = Policy.load(path, max_rate=None if by == "contract" else 1.0)
    free = Policy.load(bundles.mlp_bundle(tmp_path / "free"))
    previous, limited = SAFE.copy(), 0
    for observation in observations:
        wanted, target = free.step(observation), policy.step(observation)
        np.testing.assert_array_less(np.abs(target - previous), 1.0 / bundles.CONTROL_HZ + 1e-6)
        reached = np.abs(wanted - previous) <= 1.0 / bundles.CONTROL_HZ
        np.testing.assert_array_equal(target[reached], wanted[reached])
        assert (policy.flags == Flags.RATE_LIMITED) == (not reached.all())
        limited += not reached.all()
        previous = target.copy()
    assert limited > 10
    held = np.full(12, -0.7, np.float32)
    policy.reset(held)
    target = policy.step(np.full(bundles.WIDTH, np.nan, np.float32))
    np.testing.assert_allclose(target, held + 0.02, atol=1e-6)
    assert policy.flags == Flags.NAN_OBSERVATION | Flags.RATE_LIMITED


def test_a_held_target_is_the_last_one_and_flags_add_up(bundle, observations):
    policy = Policy.load(bundle[1])
    target = policy.step(observations[0]).copy()
    assert policy.flags == 0
    np.testing.assert_array_equal(policy.hold(Flags.DEADLINE_MISSED), target)
    assert policy.flags == Flags.DEADLINE_MISSED
    policy.step(np.full(bundles.WIDTH, np.nan, np.float32))
    policy.add_flag(Flags.DEADLINE_MISSED)
    assert policy.flags == Flags.NAN_OBSERVATION | Flags.DEADLINE_MISSED
    policy.reset()
    assert policy.flags == 0
    np.testing.assert_array_equal(policy.target, SAFE)


@pytest.mark.parametrize("hz", [10.0, 62.5, 200.0])
@pytest.mark.parametrize("by", ["contract", "argument"])
def test_a_rate_limit_is_per_second_at_the_bundles_own_rate(tmp_path, hz, by):
    """From -0.7 to the safe target, 0.1, at 2 units a second: a step is 2 / hz of it."""
    path = bundles.mlp_bundle(tmp_path / "b", hz=hz, max_rate=2.0 if by == "contract" else None)
    policy = Policy.load(path, max_rate=None if by == "contract" else 2.0)
    policy.reset(np.full(12, -0.7, np.float32))
    expected = [min(-0.7 + 2.0 / hz * i, 0.1) for i in range(1, 100)]
    found = [policy.step_to_safe(Flags.DEADLINE_MISSED)[0] for _ in expected]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("held", [np.zeros(3), np.zeros((1, 12)), [np.nan] * 12, [0.0] * 11 + [np.inf], 0.5])
def test_a_held_target_that_is_none(bundle, observations, held):
    """The policy goes on as if it had not been asked."""
    policy, undisturbed = Policy.load(bundle[1]), Policy.load(bundle[1])
    for one in (policy, undisturbed):
        one.step(observations[0])
    with pytest.raises(ObservationError, match=r"reset: target .* is not 12 finite numbers"):
        policy.reset(held)
    np.testing.assert_array_equal(policy.step(observations[1]), undisturbed.step(observations[1]))


def test_what_failed_its_gates_is_loaded_where_that_is_allowed(tmp_path, observations):
    path = bundles.mlp_bundle(tmp_path / "b")
    (path / "FAILED_GATES").write_text("latency\n")
    with pytest.raises(RuntimeBundleError, match="failed its gates and is not for a robot; export a better"):
        Policy.load(path)
    assert Policy.load(path, allow_failed_gates=True).step(observations[0]).shape == (12,)


@pytest.mark.parametrize("by", ["contract", "argument"])
def test_a_policy_says_whether_it_limits_rates(tmp_path, by):
    """An infinite rate is no limit; one joint's limit is."""
    for rates, limits in (([np.inf] * 12, False), ([np.inf] * 11 + [3.0], True)):
        contract = bundles.contract_dict(states=[("last_action", 12)])
        if by == "contract":
            for joint, rate in zip(contract["joints"], rates, strict=True):
                joint["max_rate_per_s"] = rate if np.isfinite(rate) else None
        policy = Policy(check_contract(contract), Copies(contract), None if by == "contract" else rates)
        assert policy.limits_rates == limits
        policy.step(np.full(bundles.WIDTH, 0.5, np.float32))
        np.testing.assert_allclose(policy.target, [0.5] * 11 + [0.1 + 3.0 / 50 if limits else 0.5], atol=1e-6)


class Copies(Network):
    """Targets are the first values of the observation; numpy alone."""

    provider = "copies"

    def __init__(self, contract):
        super().__init__(check_contract(contract), lambda size: np.zeros(size, np.float32))

    def run(self):
        self.target[:] = self.observation[: self.target.size]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e38, -1e38])
def test_a_limit_that_float32_cannot_hold_is_its_largest_number(value):
    contract = bundles.contract_dict()
    contract["observation"]["terms"][0] |= {"low": -1e300, "high": 1e300}
    policy = Policy(check_contract(contract), Copies(contract))
    observation = np.zeros(bundles.WIDTH, np.float32)
    observation[5] = value
    policy.step(observation)
    assert policy.flags == (0 if np.isfinite(value) else Flags.OUT_OF_RANGE)


def test_flags_have_the_numbers_that_logs_and_packets_hold():
    """As docs/runtime.md lists them."""
    names = ("NAN_OBSERVATION", "OUT_OF_RANGE", "RATE_LIMITED", "NAN_TARGET", "DEADLINE_MISSED")
    assert {flag.name: flag.value for flag in Flags} == dict(zip(names, (1, 2, 4, 8, 16), strict=True))


def test_buffers_begin_on_a_cache_line(tmp_path):
    """Whatever their sizes are: what vector instructions read lies in as few lines as possible."""
    graph, states = bundles.Graph(), [("a", 1), ("b", 17), ("c", 3)]
    for name, _ in states:
        graph.add("Identity", f"{name}_in", out=f"{name}_out")
    graph.add("Slice", "observation", *(graph.constant([i], np.int64) for i in (0, 12, 1)), out="target")
    model = graph.model(bundles.WIDTH, 12, states, 18)
    for i in range(4):  # memory from the system may lie well by chance
        policy = Policy.load(bundles.write_bundle(tmp_path / str(i), model, states=states))
        for _ in range(2):
            assert all(array.ctypes.data % 64 == 0 for array in policy.states().values())
            policy.step(np.zeros(bundles.WIDTH, np.float32))
        assert policy.observation.ctypes.data % 64 == 0


def test_states_lie_apart_and_begin_as_zeros(tmp_path):
    """Three states of odd widths, each counted on by its own number: none touches another."""
    graph, states = bundles.Graph(), [("a", 1), ("b", 17), ("c", 3)]
    for i, (name, _) in enumerate(states):
        graph.add("Add", f"{name}_in", graph.constant([[i + 1.0]]), out=f"{name}_out")
    graph.add("Slice", "observation", *(graph.constant([i], np.int64) for i in (0, 12, 1)), out="target")
    model = graph.model(bundles.WIDTH, 12, states, 18)
    policy = Policy.load(bundles.write_bundle(tmp_path / "b", model, states=states))
    for steps in range(5):
        for i, (name, width) in enumerate(states):
            np.testing.assert_array_equal(policy.states()[name], np.full(width, (i + 1.0) * steps))
        policy.step(np.zeros(bundles.WIDTH, np.float32))
    policy.reset()
    assert not any(values.any() for values in policy.states().values())


@pytest.mark.filterwarnings("error")
def test_a_network_that_fails_on_an_observation_is_safe_and_told_once(tmp_path, observations, caplog):
    """It looks up the row that the first sensor names, and has three; its state counts the steps."""
    graph = bundles.Graph()
    first = graph.add("Slice", "observation", *(graph.constant([i], np.int64) for i in (0, 1, 1)))
    index = graph.add(
        "Squeeze", graph.add("Cast", first, to=onnx.TensorProto.INT64), graph.constant([0], np.int64)
    )
    rows = graph.constant(np.repeat([[0.2], [0.3], [0.4]], 12, axis=1))
    graph.add("Gather", rows, index, axis=0, out="target")
    graph.add("Add", "count_in", graph.constant([[1.0]]), out="count_out")
    model = graph.model(bundles.WIDTH, 12, [("count", 1)], 18)
    policy = Policy.load(bundles.write_bundle(tmp_path / "b", model, states=[("count", 1)]))
    observation = observations[0].copy()
    for value, target in ((1.0, 0.3), (4.0, 0.1), (5.0, 0.1), (4.5, 0.1), (2.0, 0.4)):
        observation[0] = value
        np.testing.assert_allclose(policy.step(observation), target)
        assert policy.flags == (Flags.NAN_TARGET if value > 2 else 0)
    np.testing.assert_array_equal(policy.states()["count"], [2.0])
    assert len(caplog.records) == 1
    assert "onnxruntime cannot run the network on an observation: " in caplog.text


@pytest.mark.parametrize("max_rate", [0.0, -1.0, np.nan, np.ones(3), "fast"])
def test_wrong_max_rate(bundle, max_rate):
    with pytest.raises(RuntimeBundleError, match=r"max_rate: .* is not above 0 for 12 targets"):
        Policy.load(bundle[1], max_rate=max_rate)


def test_named_terms(bundle, observations):
    policy, other = Policy.load(bundle[1]), Policy.load(bundle[1])
    for observation in observations:
        named = {"command": list(observation[-3:]), "sensors": observation[:-3]}
        np.testing.assert_array_equal(policy.step(named), other.step(observation))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(34, np.float32), "shape .34,. is not the contract's .33,."),
        (np.zeros(1, np.float32), "shape .1,."),
        (np.zeros((1, 33), np.float32), "shape .1, 33."),
        ({"sensors": np.zeros(30)}, "lacks command"),
        ({"sensors": np.zeros(30), "command": np.zeros(3), "height": 1.0}, "unknown height"),
        ({"sensors": np.zeros(30), "command": 1.0}, "command has 1 values, not 3"),
        ([0.0] * 33, "list is neither an array nor terms by name"),
        (np.zeros(33, complex), "complex128 is not a kind of number"),
        ({"sensors": np.zeros(30), "command": ["a", "b", "c"]}, "is not a kind of number"),
        ({"sensors": np.zeros(30), "command": [1.0, [2.0], 3.0]}, "command is no array of numbers"),
        ({"sensors": np.zeros(30), "height": 1.0}, "lacks command, has unknown height; see"),
        ({"sensors": np.zeros(30)}, "lacks command, has unknown none; see"),
    ],
)
def test_a_wrong_width_is_an_error(bundle, observation, message):
    with pytest.raises(ObservationError, match=message):
        Policy.load(bundle[1]).step(observation)


def test_a_float64_observation_is_taken(bundle, observations):
    policy, other = Policy.load(bundle[1]), Policy.load(bundle[1])
    np.testing.assert_array_equal(
        policy.step(observations[0].astype(np.float64)), other.step(observations[0])
    )


@pytest.mark.filterwarnings("error")
def test_a_float64_too_large_for_float32_is_out_of_range(bundle):
    policy = Policy.load(bundle[1])
    np.testing.assert_array_equal(policy.step(np.full(bundles.WIDTH, 1e300)), SAFE)
    assert policy.flags == Flags.OUT_OF_RANGE


def test_robot_joints_are_matched_by_name(bundle):
    contract = Policy.load(bundle[1]).contract
    robot = ["gripper", *(f"joint_{i}" for i in reversed(range(12)))]
    assert [robot[i] for i in contract.joint_indices(robot)] == [joint.name for joint in contract.joints]
    with pytest.raises(RuntimeBundleError, match="the robot has no joint_3, joint_5"):
        contract.joint_indices([name for name in robot if name not in ("joint_3", "joint_5")])


def test_network_inputs_must_be_the_contracts(tmp_path):
    with pytest.raises(RuntimeBundleError, match=r"inputs .* are not the contract's \['observation'\]"):
        Policy.load(bundles.write_bundle(tmp_path / "a", bundles.mlp_onnx()))
    with pytest.raises(RuntimeBundleError, match=r"input observation .* not the contract's .*\[1, 23\]"):
        Policy.load(
            bundles.write_bundle(tmp_path / "b", bundles.mlp_onnx(), states=[("last_action", 12)], sensors=20)
        )


def test_unknown_provider(bundle):
    with pytest.raises(
        RuntimeBundleError, match="provider: 'cuda' is not one of auto, onnxruntime, tensorrt"
    ):
        Policy.load(bundle[1], provider="cuda")


def test_the_callers_arithmetic_stays_as_it_was(bundle):
    """onnxruntime can make small numbers 0 for speed, and would do so for the whole thread."""
    Policy.load(bundle[1]).step(np.zeros(bundles.WIDTH, np.float32))
    assert np.array([1e-40], np.float32) * np.float32(1) > 0


def best_latency_us(step, observation, num_steps=3000, repeats=10):
    """p50 and p99 of the best of several repeats: other work on the machine only ever adds."""
    times = np.empty((repeats, num_steps))
    for i in range(repeats):
        for j in range(num_steps):
            start = time.perf_counter_ns()
            step(observation)
            times[i, j] = time.perf_counter_ns() - start
    return np.percentile(times / 1e3, [50, 99], axis=1).min(axis=1)


@pytest.mark.slow
def test_latency(bundle, observations):
    kind, path = bundle
    p50, p99 = best_latency_us(Policy.load(path).step, observations[0])
    assert p50 <= {"mlp": 20, "gru": 32}[kind]
    assert p99 <= {"mlp": 40, "gru": 64}[kind]


def test_a_step_costs_little_more_than_the_bare_network(bundle, observations):
    policy = Policy.load(bundle[1])
    session = onnxruntime.InferenceSession(bundle[1] / "policy.onnx", providers=["CPUExecutionProvider"])
    feed = {
        node.name: np.zeros((1, node.shape[1]), np.float32)
        if node.name != "observation"
        else observations[:1]
        for node in session.get_inputs()
    }
    bare, _ = best_latency_us(lambda _: session.run(None, feed), None, 500)
    step, _ = best_latency_us(policy.step, observations[0], 500)
    assert step < 1.5 * bare


@pytest.mark.slow
def test_memory_does_not_grow(bundle, observations):
    policy, process = Policy.load(bundle[1], max_rate=1.0), psutil.Process()
    bad = np.full(bundles.WIDTH, np.nan, np.float32)
    sizes = []
    for _ in range(5):
        for i in range(200_000):
            policy.step(bad if i % 100 == 0 else observations[i % 50])
        sizes.append(process.memory_info().rss)
    assert max(sizes[1:]) - sizes[0] < 256 * 1024, sizes


def test_import_is_quick_and_small(bundle):
    """The whole process: interpreter, numpy, onnxruntime, the policy loaded and one step done."""
    code = f"""
import time; start = time.perf_counter()
import sys, numpy
from pi_incubator.runtime import Policy
imported = time.perf_counter() - start
import onnxruntime
with_library = time.perf_counter() - start
policy = Policy.load({str(bundle[1])!r}); policy.step(numpy.zeros(33, numpy.float32))
with open("/proc/self/status") as status:
    (peak_kb,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
print(imported, with_library, peak_kb)
"""
    best = [np.inf] * 3
    for _ in range(3):
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        best = [min(pair) for pair in zip(best, map(float, output.split()), strict=True)]
    assert best[1] <= 0.5
    assert best[2] <= 120 * 1024
