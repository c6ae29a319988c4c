"""Mamba's selective scan in every implementation, against float64, a closed form and scipy's filter."""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from kernels.selective_scan import make_inputs, op, selective_scan, selective_step

# The interpreter is slower by three orders of magnitude.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NUM_CASES, NUM_GRADIENT_CASES = (40, 10) if INTERPRETED else (400, 100)
OPTIONAL = ("D", "z", "delta_bias", "reset", "initial_state")
IN_STEPS = ("x", "delta", "B", "C", "z", "reset")
HALVES = [torch.bfloat16, torch.float16]
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def small_inputs(num_steps=11, num_worlds=2, **options):
    return make_inputs(num_steps, num_worlds, **{"num_channels": 5, "num_states": 3, **options})


@st.composite
def sequences(draw):
    """From one step to several chunks, odd sizes, any input left out, resets everywhere and nowhere."""
    num_steps = draw(st.sampled_from([1, 2, 7, 8, 9, 17, 40] if not INTERPRETED else [1, 3, 9, 17]))
    num_worlds, num_states = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4]))
    num_channels = draw(st.sampled_from([1, 3, 16, 129] if not INTERPRETED else [1, 3]))
    seed = draw(st.integers(0, 2**31))
    inputs = make_inputs(num_steps, num_worlds, num_channels=num_channels, num_states=num_states, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    chance = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    inputs["reset"] = torch.rand(num_worlds, num_steps, generator=generator) < chance
    inputs["A"] = inputs["A"] * torch.rand(inputs["A"].shape, generator=generator)
    inputs["x"] *= draw(st.sampled_from([0.01, 1.0, 100.0]))
    inputs["z"] *= draw(st.sampled_from([1.0, 30.0]))
    inputs["delta_softplus"] = draw(st.booleans())
    if inputs["delta_softplus"]:
        inputs["delta"] *= draw(st.sampled_from([1.0, 10.0]))
    else:
        inputs["delta"] = 0.2 * inputs["delta"].abs()
        inputs["delta_bias"] = 0.1 * inputs["delta_bias"].abs()
    return {name: x for name, x in inputs.items() if name not in OPTIONAL or draw(st.booleans())}


def to(inputs, *where):
    """The floating-point tensors converted to a dtype, or all tensors moved to a device."""
    dtype = isinstance(where[0], torch.dtype)
    return {
        name: x.to(*where) if torch.is_tensor(x) and (x.is_floating_point() or not dtype) else x
        for name, x in inputs.items()
    }


def evaluate(inputs, implementation, scan=selective_scan, weighted=torch.clone):
    """Results, and the gradients of a weighted sum of them, by name."""
    leaves = {
        name: x.detach().clone().requires_grad_()
        for name, x in inputs.items()
        if torch.is_tensor(x) and x.is_floating_point()
    }
    y, state = scan(**{**inputs, **leaves}, implementation=implementation)
    generator = torch.Generator().manual_seed(3)
    # Weights that half precision represents.
    weights = [weighted(torch.randn(x.shape, generator=generator)).bfloat16().to(x) for x in (y, state)]
    total = (y * weights[0]).sum() + (state * weights[1]).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return {"y": y.detach(), "state": state.detach()}, dict(zip(leaves, gradients, strict=True))


def magnitudes(inputs):
    """What rounding is relative to: the largest sum of absolute terms, because the terms may cancel."""
    signed = ("x", "B", "C", "D", "z", "initial_state")
    positive = {name: x.abs() if name in signed else x for name, x in to(inputs, torch.float64).items()}
    results, gradients = evaluate(positive, "reference", weighted=torch.abs)
    return {name: x.abs().max().item() for name, x in (results | gradients).items()}


def relative_error(actual, expected, scale=None):
    """In the maximum norm."""
    scale = expected.abs().max().item() if scale is None else scale
    difference = (actual.cpu().double() - expected.cpu()).abs().max().item()
    return 0.0 if difference == 0.0 else difference / scale


def assert_exact(inputs, implementation, device, tolerance=1e-5):
    """Results and gradients are within `tolerance` of float64's, relative to the largest."""
    expected, expected_gradients = evaluate(to(inputs, torch.float64), "reference")
    results, gradients = evaluate(to(inputs, device), implementation)
    for name, x in results.items():
        assert x.dtype == (inputs["x"].dtype if name == "y" else torch.float32)
        assert x.shape == expected[name].shape
        assert relative_error(x, expected[name]) <= (tolerance if name == "y" else 1e-5), name
    for name, x in gradients.items():
        assert (x.dtype, x.shape) == (inputs[name].dtype, inputs[name].shape)
        assert relative_error(x, expected_gradients[name]) <= tolerance, name


@settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=CHECKS)
@given(inputs=sequences())
def test_equals_float64(inputs, implementation, device):
    results = selective_scan(**to(inputs, device), implementation=implementation)
    exact = selective_scan(**to(inputs, torch.float64), implementation="reference")
    scales = magnitudes(inputs)
    for name, actual, expected in zip(("y", "state"), results, exact, strict=True):
        assert (actual.dtype, actual.shape) == (torch.float32, expected.shape)
        assert relative_error(actual, expected, scales[name]) <= 1e-5, name


@settings(max_examples=NUM_GRADIENT_CASES, deadline=None, suppress_health_check=CHECKS)
@given(inputs=sequences())
def test_gradients_equal_autograd(inputs, implementation, device):
    _, expected = evaluate(to(inputs, torch.float64), "reference")
    _, gradients = evaluate(to(inputs, device), implementation)
    scales = magnitudes(inputs)
    for name, x in gradients.items():
        assert (x.dtype, x.shape) == (torch.float32, inputs[name].shape)
        assert relative_error(x, expected[name], scales[name]) <= 1e-5, name


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), (8, 2, 64, 4), (9, 1, 65, 2), (16, 3, 8, 16), (33, 2, 3, 5), (3, 2, 2, 130)]
)
def test_equals_float64_at_the_edges_of_blocks(sizes, implementation, device):
    num_steps, num_worlds, num_channels, num_states = sizes
    if INTERPRETED:
        num_steps, num_channels = min(num_steps, 9), min(num_channels, 3)
    inputs = make_inputs(num_steps, num_worlds, num_channels=num_channels, num_states=num_states)
    assert_exact(inputs, implementation, device)


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_left_out(name, implementation, device):
    inputs = small_inputs()
    del inputs[name]
    assert_exact(inputs, implementation, device)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_resets_at_their_limits(chance, implementation, device):
    inputs = small_inputs()
    inputs["reset"] = torch.full_like(inputs["reset"], bool(chance))
    assert_exact(inputs, implementation, device)
    without = {name: x for name, x in to(inputs, device).items() if name != "reset"}
    if chance == 0.0:
        for actual, expected in zip(
            selective_scan(**to(inputs, device), implementation=implementation),
            selective_scan(**without, implementation=implementation),
            strict=True,
        ):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_rounded_once(dtype, implementation, device):
    assert_exact(small_inputs(dtype=dtype), implementation, device, tolerance=torch.finfo(dtype).eps)


def test_mixed_as_autocast_leaves_them(implementation, device):
    inputs = small_inputs()
    for name in ("x", "delta", "B", "C", "z"):
        inputs[name] = inputs[name].bfloat16()
    assert_exact(inputs, implementation, device, tolerance=torch.finfo(torch.bfloat16).eps)


def test_equals_the_sum_over_all_earlier_steps(implementation, device):
    """The recurrence solved: what a step gave decays by all step sizes since, unless a reset lies between."""
    inputs = small_inputs()
    inputs["reset"] = torch.rand(2, 11, generator=torch.Generator().manual_seed(1)) < 0.2
    y, _ = selective_scan(**to(inputs, device), implementation=implementation)
    given = {name: np.asarray(x, dtype=np.float64) for name, x in inputs.items() if name != "reset"}
    size = np.logaddexp(0.0, given["delta"] + given["delta_bias"])
    reset = inputs["reset"].numpy()
    expected = np.zeros(y.shape)
    for b, t, d in np.ndindex(*y.shape):
        begin = max((u for u in range(t + 1) if reset[b, u]), default=-1)
        state = np.zeros(3)
        for u in range(max(begin, 0), t + 1):
            since = size[b, u + 1 : t + 1, d].sum()
            state += np.exp(given["A"][d] * since) * size[b, u, d] * given["x"][b, u, d] * given["B"][b, u]
        if begin < 0:
            state += np.exp(given["A"][d] * size[b, : t + 1, d].sum()) * given["initial_state"][b, d]
        z = given["z"][b, t, d]
        plain = (given["C"][b, t] * state).sum() + given["D"][d] * given["x"][b, t, d]
        expected[b, t, d] = plain * z / (1.0 + math.exp(-z))
    assert relative_error(y, torch.from_numpy(expected)) <= 1e-5


def test_equals_scipys_filter_where_nothing_depends_on_time(implementation, device):
    inputs = small_inputs(num_steps=30)
    for name in ("delta", "B", "C"):
        inputs[name] = inputs[name][:, :1].expand_as(inputs[name])
    given = {name: inputs[name] for name in ("x", "delta", "A", "B", "C")}
    y, _ = selective_scan(**to(given, device), delta_softplus=True, implementation=implementation)
    x, delta, A, B, C = (tensor.double().numpy() for tensor in given.values())
    size = np.logaddexp(0.0, delta[:, 0])  # [B, Dm]
    expected = np.zeros(y.shape)
    for b, d, s in np.ndindex(2, 5, 3):
        decay = np.exp(size[b, d] * A[d, s])
        expected[b, :, d] += lfilter([C[b, 0, s] * size[b, d] * B[b, 0, s]], [1.0, -decay], x[b, :, d])
    assert relative_error(y, torch.from_numpy(expected)) <= 1e-5


def test_steps_are_the_scan(implementation, device):
    inputs = to(small_inputs(num_steps=19), device)
    inputs["reset"][1, 4] = True
    y, final = selective_scan(**inputs, implementation=implementation)
    state = inputs.pop("initial_state")
    for t in range(19):
        before = state.clone()
        now = {name: x[:, t] if name in IN_STEPS else x for name, x in inputs.items()}
        y_now, following = selective_step(state, **now, implementation=implementation)
        assert y_now.shape == y[:, t].shape
        torch.testing.assert_close(y_now, y[:, t], rtol=1e-5, atol=1e-6)
        assert torch.equal(state, before)
        state = following
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-6)


def test_a_step_is_differentiable(implementation, device):
    inputs = small_inputs(num_steps=1)
    _, expected = evaluate(to(inputs, torch.float64), "reference")

    def step(initial_state, implementation, **rest):
        now = {name: x[:, 0] if name in IN_STEPS else x for name, x in rest.items()}
        y, state = selective_step(initial_state, **now, implementation=implementation)
        return y.unsqueeze(1), state

    _, gradients = evaluate(to(inputs, device), implementation, step)
    for name, x in gradients.items():
        assert relative_error(x, expected[name]) <= 1e-5, name


def test_a_sequence_may_be_cut_in_two(implementation, device):
    inputs = to(small_inputs(), device)
    y, final = selective_scan(**inputs, implementation=implementation)
    halves = [
        {name: x[:, part] if name in IN_STEPS else x for name, x in inputs.items()}
        for part in (slice(5), slice(5, None))
    ]
    first, between = selective_scan(**halves[0], implementation=implementation)
    second, last = selective_scan(**{**halves[1], "initial_state": between}, implementation=implementation)
    torch.testing.assert_close(torch.cat([first, second], 1), y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, final, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["y", "state"])
def test_one_result_alone(name, implementation, device):
    """Backward without a gradient for the other."""
    gradients = []
    for case, chosen in (
        (to(small_inputs(), device), implementation),
        (small_inputs(dtype=torch.float64), "reference"),
    ):
        leaves = [case[leaf].requires_grad_() for leaf in ("x", "delta", "A", "B", "initial_state")]
        y, state = selective_scan(**case, implementation=chosen)
        gradients.append(torch.autograd.grad((y if name == "y" else state).sum(), leaves))
    for actual, expected in zip(*gradients, strict=True):
        assert relative_error(actual, expected) <= 1e-5


def test_a_reset_hides_a_nan_and_cuts_the_gradient(implementation, device):
    inputs = to(small_inputs(), device)
    inputs["reset"][:, 6] = True
    clean_x = inputs["x"].clone()
    clean, clean_gradients = evaluate(inputs, implementation)
    inputs["x"][:, 3] = torch.nan
    results, gradients = evaluate(inputs, implementation)
    assert torch.equal(results["y"][:, 6:], clean["y"][:, 6:])
    assert torch.equal(results["state"], clean["state"])
    assert results["y"][:, 3].isnan().all()
    for name in ("x", "delta", "B", "C", "z"):
        assert torch.equal(gradients[name][:, 6:], clean_gradients[name][:, 6:]), name
    late = {**inputs, "x": clean_x.clone()}
    late["x"][:, 8] = torch.nan
    _, gradients = evaluate(late, implementation)
    for name in ("x", "delta", "B", "C", "z"):
        assert torch.equal(gradients[name][:, :6], clean_gradients[name][:, :6]), name
    inputs["x"] = torch.zeros_like(inputs["x"]).requires_grad_()
    _, state = selective_scan(**inputs, implementation=implementation)
    (of_x,) = torch.autograd.grad(state.sum(), inputs["x"])
    assert (of_x[:, :6] == 0).all()
    assert (of_x[:, 6:] != 0).any()


def test_nan_stays_in_its_sequence(implementation, device):
    inputs = to(small_inputs(num_worlds=3), device)
    clean, clean_gradients = evaluate(inputs, implementation)
    inputs["delta"][1, 4] = torch.nan
    results, gradients = evaluate(inputs, implementation)
    for name, x in results.items():
        assert torch.equal(x[::2], clean[name][::2])
    assert results["y"][1, 4].isnan().all()
    for name in ("x", "delta", "B", "C", "z", "initial_state"):
        assert torch.equal(gradients[name][::2], clean_gradients[name][::2])


@pytest.mark.parametrize("sizes", [(0, 2, 3), (3, 0, 3), (3, 2, 0)])
def test_empty(sizes, implementation, device):
    num_steps, num_worlds, num_channels = sizes
    inputs = to(make_inputs(num_steps, num_worlds, num_channels=num_channels), device)
    results, gradients = evaluate(inputs, implementation)
    assert results["y"].shape == (num_worlds, num_steps, num_channels)
    assert results["state"].shape == (num_worlds, num_channels, 16)
    assert all(x.shape == inputs[name].shape for name, x in gradients.items())
    if num_steps == 0:
        assert torch.equal(results["state"], inputs["initial_state"])


def test_other_strides(implementation, device):
    inputs = to(small_inputs(), device)
    strided = {}
    for name, x in inputs.items():
        strided[name] = x
        if torch.is_tensor(x):
            strided[name] = x.unsqueeze(-1).expand(*x.shape, 2).contiguous().select(-1, 0)
            assert not strided[name].is_contiguous()
    expected, expected_gradients = evaluate(inputs, implementation)
    results, gradients = evaluate(strided, implementation)
    for name, x in (results | gradients).items():
        assert torch.equal(x, (expected | expected_gradients)[name])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", torch.zeros(2, 5)),
        ("x", torch.zeros(2, 11, 5, dtype=torch.int64)),
        ("delta", torch.zeros(2, 11, 4)),
        ("delta", torch.zeros(2, 11, 5, dtype=torch.float64)),
        ("A", torch.zeros(5)),
        ("A", torch.zeros(5, 0)),
        ("A", torch.zeros(4, 3)),
        ("B", torch.zeros(2, 11, 5)),
        ("C", torch.zeros(2, 3)),
        ("C", torch.zeros(2, 11, 3, device="meta")),
        ("D", torch.zeros(3)),
        ("z", torch.zeros(2, 11, 1)),
        ("delta_bias", torch.zeros(1)),
        ("reset", torch.zeros(2, 11)),
        ("reset", torch.zeros(11, 2, dtype=torch.bool)),
        ("initial_state", torch.zeros(2, 3, 5)),
    ],
)
def test_an_input_that_does_not_fit_is_named(name, wrong):
    with pytest.raises(ValueError, match=f"selective_scan: {name} must be"):
        selective_scan(**{**small_inputs(), name: wrong})


@pytest.mark.parametrize(("name", "wrong"), [("state", torch.zeros(1, 5, 3)), ("x", torch.zeros(2, 1, 5))])
def test_an_input_of_a_step_that_does_not_fit_is_named(name, wrong):
    inputs = small_inputs()
    now = {key: x[:, 0] if key in IN_STEPS else x for key, x in inputs.items()}
    now["state"] = now.pop("initial_state")
    with pytest.raises(ValueError, match=f"selective_step: {name} must be"):
        selective_step(**{**now, name: wrong})


# The interpreter needs 20 s for each: there the second is a slow test.
@pytest.mark.parametrize(
    "without", [(), pytest.param(OPTIONAL, marks=[pytest.mark.slow] if INTERPRETED else [])]
)
@pytest.mark.compiled
def test_the_operators_pass_opcheck(without, implementation, device):
    inputs = to(small_inputs(num_steps=9), device)
    names = ("x", "delta", "A", "B", "C", *OPTIONAL)
    tensors = [None if name in without else inputs[name] for name in names]
    saved = op.forward(*tensors, True, True, implementation)[2]
    gradients = (torch.randn_like(inputs["x"]), torch.randn_like(inputs["initial_state"]))
    for grad_y, grad_final in (gradients, (None, gradients[1]), (gradients[0], None)):
        torch.library.opcheck(op.backward, (grad_y, grad_final, *tensors, saved, True, implementation))
    leaves = [x.requires_grad_() if x is not None and x.is_floating_point() else x for x in tensors]
    torch.library.opcheck(op.forward, (*leaves, True, True, implementation))


def test_is_one_graph(implementation, device):
    inputs = to(small_inputs(), device)
    torch.compiler.reset()
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    expected, expected_gradients = evaluate(inputs, implementation)
    results, gradients = evaluate(inputs, implementation, compiled)
    for name, x in (results | gradients).items():
        torch.testing.assert_close(x, (expected | expected_gradients)[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_hardware_at_full_size_in_a_graph_and_the_same_every_time():
    inputs = make_inputs(256, 64, num_channels=128)
    assert_exact(inputs, "triton", "cuda")
    inputs = to(inputs, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        first = selective_scan(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = selective_scan(**inputs)
    for _ in range(100):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(first, captured, strict=True))
