"""V-trace, TD(lambda), lambda and discounted returns, which are one recursion, in every implementation.

Each against itself in float64, against TorchRL's, and against its published equation evaluated term by term.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchrl.objectives.value.functional import (
    reward2go,
    td_lambda_return_estimate,
    vtrace_advantage_estimate,
)

import kernels
from kernels._scan import reference
from kernels.gae import gae

NAMES = ["discounted_return", "lambda_return", "td_lambda", "vtrace"]
LEAVES = {
    "discounted_return": ["reward", "next_value"],
    "lambda_return": ["reward", "next_value", "discount"],
    "td_lambda": ["reward", "next_value"],
}
HALVES = [torch.bfloat16, torch.float16]
# The interpreter is slower by two orders of magnitude.
NUM_CASES, NUM_GRADIENT_CASES = (40, 10) if os.environ.get("TRITON_INTERPRET") == "1" else (400, 100)
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@st.composite
def rollouts(draw, name, max_steps=12):
    """Arguments for the kernel: from no end of an episode to nothing but ends, all discounts and clips."""
    num_steps = draw(st.integers(1, max_steps))
    num_worlds = draw(st.sampled_from([1, 2, 3, 7, 31, 127, 128, 129]))
    seed = draw(st.integers(0, 2**32 - 1))
    inputs = kernels.get(name).inputs(num_steps, num_worlds, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    inputs["reward"] *= draw(st.sampled_from([0.01, 1.0, 100.0]))
    if name == "lambda_return" and draw(st.booleans()):
        inputs["terminated"] = torch.rand(num_steps, num_worlds, generator=generator) < 0.3
    if "done" in inputs:
        for flag in ("terminated", "done"):
            chance = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
            inputs[flag] = torch.rand(num_steps, num_worlds, generator=generator) < chance
        inputs["done"] |= inputs["terminated"]
        inputs["gamma"] = draw(st.floats(0.0, 1.0))
    if name != "discounted_return":
        inputs["lam"] = draw(st.floats(0.0, 1.0))
    if name == "vtrace":
        for clip in ("rho_clip", "c_clip"):
            inputs[clip] = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, torch.inf]))
    return inputs


def call(name, inputs, implementation):
    """The kernel's results as a list."""
    results = kernels.get(name).call(**inputs, implementation=implementation)
    return list(results) if isinstance(results, tuple) else [results]


def to(inputs, *where):
    """The floating-point tensors converted to a dtype, or all tensors moved to a device."""
    dtype = isinstance(where[0], torch.dtype)
    return {
        name: x.to(*where) if isinstance(x, torch.Tensor) and (x.is_floating_point() or not dtype) else x
        for name, x in inputs.items()
    }


def relative_error(actual, expected, inputs=None):
    """Relative to the largest result or input: where inputs cancel, a result is no better than they are."""
    scale = expected.abs().max().item()
    for name in ("reward", "value", "next_value"):
        if inputs is not None and name in inputs:
            scale = max(scale, inputs[name].abs().max().item())
    difference = (actual.double() - expected).abs().max().item()
    return 0.0 if difference == 0.0 else difference / scale


def assert_exact(name, inputs, implementation, tolerance=1e-5):
    expected = call(name, to(inputs, torch.float64), "reference")
    for actual, exact in zip(call(name, inputs, implementation), expected, strict=True):
        assert (actual.dtype, actual.shape) == (inputs["reward"].dtype, exact.shape)
        assert relative_error(actual, exact, inputs) <= tolerance


def gradients(results, leaves, weight):
    return torch.autograd.grad((results * weight).sum(), leaves)


def plain_returns(inputs):
    """The reference as autograd sees it."""
    names = ("reward", "next_value", "discount", "terminated", "done")
    return reference.returns(
        *(inputs.get(name) for name in names), inputs.get("gamma", 1.0), inputs.get("lam", 1.0)
    )


def gradients_and_exact(name, inputs, implementation):
    """Pairs of ours and autograd's in float64."""
    weight = torch.randn(
        inputs["reward"].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    weight = weight.to(inputs["reward"].dtype).to(inputs["reward"].device)
    ours = {**inputs, **{leaf: inputs[leaf].clone().requires_grad_() for leaf in LEAVES[name]}}
    exact = {**to(inputs, torch.float64)}
    exact |= {leaf: exact[leaf].clone().requires_grad_() for leaf in LEAVES[name]}
    return zip(
        gradients(*call(name, ours, implementation), [ours[leaf] for leaf in LEAVES[name]], weight),
        gradients(plain_returns(exact), [exact[leaf] for leaf in LEAVES[name]], weight.double()),
        strict=True,
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=CHECKS)
@given(data=st.data())
def test_equals_float64(name, data, implementation, device):
    assert_exact(name, to(data.draw(rollouts(name)), device), implementation)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (9, 128), (3, 129), (2, 2053), (211, 3)])
def test_equals_float64_at_the_edges_of_blocks(name, shape, implementation, device):
    assert_exact(name, kernels.get(name).inputs(*shape, device=device), implementation)


@pytest.mark.parametrize("name", LEAVES)
@settings(max_examples=NUM_GRADIENT_CASES, deadline=None, suppress_health_check=CHECKS)
@given(data=st.data())
def test_gradients_equal_autograd(name, data, implementation, device):
    inputs = to(data.draw(rollouts(name)), device)
    for actual, exact in gradients_and_exact(name, inputs, implementation):
        assert actual.dtype == torch.float32
        assert relative_error(actual, exact, {"reward": torch.ones(1)}) <= 1e-5


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_rounded_once(name, dtype, implementation, device):
    inputs = kernels.get(name).inputs(13, 31, device=device, dtype=dtype)
    assert_exact(name, inputs, implementation, tolerance=torch.finfo(dtype).eps)
    if name in LEAVES:
        for actual, exact in gradients_and_exact(name, inputs, implementation):
            assert actual.dtype == dtype
            assert relative_error(actual, exact) <= torch.finfo(dtype).eps


def columns(inputs):
    """TorchRL wants a last dimension."""
    return {
        name: x.unsqueeze(-1) if isinstance(x, torch.Tensor) else x
        for name, x in to(inputs, torch.float64).items()
    }


@pytest.mark.parametrize("shape", [(1, 3), (13, 31), (64, 5)])
def test_td_lambda_equals_torchrl(shape, implementation, device):
    inputs = kernels.get("td_lambda").inputs(*shape, device=device)
    x = columns(inputs)
    expected = td_lambda_return_estimate(
        x["gamma"], x["lam"], x["next_value"], x["reward"], x["done"], x["terminated"], time_dim=0
    )
    (actual,) = call("td_lambda", inputs, implementation)
    assert relative_error(actual, expected.squeeze(-1)) <= 1e-5


@pytest.mark.parametrize("shape", [(1, 3), (13, 31), (64, 5)])
def test_lambda_return_equals_torchrl(shape, implementation, device):
    inputs = kernels.get("lambda_return").inputs(*shape, device=device)
    x = columns(inputs)
    never = torch.zeros_like(x["reward"], dtype=torch.bool)
    expected = td_lambda_return_estimate(
        x["discount"], x["lam"], x["next_value"], x["reward"], never, never, time_dim=0
    )
    (actual,) = call("lambda_return", inputs, implementation)
    assert relative_error(actual, expected.squeeze(-1)) <= 1e-5


@pytest.mark.parametrize("shape", [(1, 3), (13, 31), (64, 5)])
def test_discounted_return_equals_torchrl(shape, implementation, device):
    inputs = kernels.get("discounted_return").inputs(*shape, device=device)
    inputs["next_value"] = torch.zeros_like(inputs["reward"])
    x = columns(inputs)
    expected = reward2go(x["reward"], x["done"], x["gamma"], time_dim=0)
    (actual,) = call("discounted_return", inputs, implementation)
    assert relative_error(actual, expected.squeeze(-1)) <= 1e-5


@pytest.mark.parametrize("clips", [(1.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize("shape", [(1, 3), (13, 31), (64, 5)])
def test_vtrace_equals_torchrl(shape, clips, implementation, device):
    inputs = kernels.get("vtrace").inputs(*shape, device=device)
    x = columns(inputs)
    expected = vtrace_advantage_estimate(
        x["gamma"],
        x["log_ratio"],
        torch.zeros_like(x["log_ratio"]),
        x["value"],
        x["next_value"],
        x["reward"],
        x["done"],
        x["terminated"],
        *clips,
        time_dim=0,
    )
    actual = call("vtrace", {**inputs, "rho_clip": clips[0], "c_clip": clips[1]}, implementation)
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative_error(ours, theirs.squeeze(-1)) <= 1e-5


def test_vtrace_equals_its_equation(implementation, device):
    """Espeholt et al. 2018, eq. 1, an episode's temporal differences summed for each step by itself."""
    inputs = kernels.get("vtrace").inputs(17, 5, device=device)
    inputs |= {"lam": 0.9, "rho_clip": 1.3, "c_clip": 0.8}
    reward, log_ratio, value, next_value = (
        inputs[name].double().tolist() for name in ("reward", "log_ratio", "value", "next_value")
    )
    terminated, done = inputs["terminated"].tolist(), inputs["done"].tolist()
    ratio = torch.tensor(log_ratio, dtype=torch.float64).exp().tolist()
    expected = torch.empty(17, 5, dtype=torch.float64)
    for n in range(5):
        for s in range(17):
            total, weight = value[s][n], 1.0
            for t in range(s, 17):
                discount = 0.0 if terminated[t][n] else 0.99
                difference = reward[t][n] + discount * next_value[t][n] - value[t][n]
                total += weight * min(1.3, ratio[t][n]) * difference
                weight *= 0.99 * 0.9 * min(0.8, ratio[t][n])
                if done[t][n]:
                    break
            expected[s, n] = total
    _, target = call("vtrace", inputs, implementation)
    assert relative_error(target.cpu(), expected) <= 1e-5


def test_td_lambda_equals_its_equation(implementation, device):
    """Sutton & Barto 2018, eq. 12.3: n-step returns weighted (1 - lam) lam^(n - 1), the last by the rest."""
    num_steps, gamma, lam = 17, 0.97, 0.8
    inputs = kernels.get("td_lambda").inputs(num_steps, 5, device=device) | {"gamma": gamma, "lam": lam}
    inputs["terminated"][5, :2] = inputs["done"][5, :3] = True
    reward, next_value = (inputs[name].double().tolist() for name in ("reward", "next_value"))
    terminated, done = inputs["terminated"].tolist(), inputs["done"].tolist()
    expected = torch.empty(num_steps, 5, dtype=torch.float64)
    for n in range(5):
        for s in range(num_steps):
            rewards, target, weight = 0.0, 0.0, 1.0
            for k, t in enumerate(range(s, num_steps)):
                rewards += gamma**k * reward[t][n]
                bootstrap = 0.0 if terminated[t][n] else gamma ** (k + 1) * next_value[t][n]
                last = done[t][n] or t == num_steps - 1
                target += (weight if last else weight * (1 - lam)) * (rewards + bootstrap)
                weight *= lam
                if last:
                    break
            expected[s, n] = target
    (actual,) = call("td_lambda", inputs, implementation)
    assert relative_error(actual.cpu(), expected) <= 1e-5


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_on_policy_all_are_the_same(lam, implementation, device):
    """Espeholt et al. 2018, remark 1; and GAE is TD(lambda)'s target minus the value."""
    inputs = kernels.get("vtrace").inputs(13, 31, device=device) | {"lam": lam}
    inputs["log_ratio"] = torch.zeros_like(inputs["reward"])
    _, target = call("vtrace", inputs, implementation)
    without = {name: x for name, x in inputs.items() if name not in ("log_ratio", "value")}
    (td_target,) = call("td_lambda", without, implementation)
    torch.testing.assert_close(target, td_target, rtol=1e-5, atol=1e-5)
    own = {name: x for name, x in inputs.items() if name != "log_ratio"}
    advantage, _, _ = gae(**own, normalize=False)
    torch.testing.assert_close(td_target - inputs["value"], advantage, rtol=1e-5, atol=1e-5)
    if lam == 1.0:
        (total,) = call("discounted_return", {k: x for k, x in without.items() if k != "lam"}, implementation)
        assert torch.equal(total, td_target)


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_world(name, implementation, device):
    inputs = kernels.get(name).inputs(13, 31, device=device)
    clean = call(name, inputs, implementation)
    for argument in [
        argument for argument, x in inputs.items() if torch.is_tensor(x) and x.is_floating_point()
    ]:
        poisoned = {**inputs, argument: inputs[argument].clone()}
        poisoned[argument][7, 4] = torch.nan
        for actual, expected in zip(call(name, poisoned, implementation), clean, strict=True):
            assert torch.equal(actual[:, :4], expected[:, :4])
            assert torch.equal(actual[:, 5:], expected[:, 5:])


@pytest.mark.parametrize("name", NAMES)
def test_nan_behind_a_flag_does_not_leak(name, implementation, device):
    inputs = kernels.get(name).inputs(13, 31, device=device)
    if name == "lambda_return":
        inputs["terminated"] = torch.zeros(13, 31, dtype=torch.bool, device=device)
    else:
        inputs["done"][3, 2] = True
    inputs["terminated"][3, 2] = True
    clean = call(name, inputs, implementation)
    hidden = inputs["next_value"].masked_fill(inputs["terminated"], torch.nan)
    for actual, expected in zip(
        call(name, {**inputs, "next_value": hidden}, implementation), clean, strict=True
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["discounted_return", "td_lambda", "vtrace"])
def test_nan_stays_in_its_episode(name, implementation, device):
    inputs = kernels.get(name).inputs(13, 31, device=device)
    inputs["done"][5] = True
    inputs["reward"][7] = torch.nan
    for result in call(name, inputs, implementation):
        assert result[:6].isfinite().all()
        assert result[7].isnan().all()


def test_discounted_return_reads_a_value_only_where_rewards_were_cut_off(implementation, device):
    inputs = kernels.get("discounted_return").inputs(13, 31, device=device)
    inputs["done"][4, 3], inputs["terminated"][4, 3] = True, False
    clean = call("discounted_return", inputs, implementation)
    needed = inputs["done"] & ~inputs["terminated"]
    needed[-1] = True
    inputs["next_value"] = inputs["next_value"].masked_fill(~needed, torch.nan)
    assert torch.equal(*call("discounted_return", inputs, implementation), *clean)
    for actual, exact in gradients_and_exact("discounted_return", inputs, implementation):
        assert actual.isfinite().all()
        assert relative_error(actual, exact) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty(name, shape, implementation, device):
    inputs = kernels.get(name).inputs(*shape, device=device)
    assert all(x.shape == shape for x in call(name, inputs, implementation))
    if name in LEAVES:
        assert all(actual.shape == shape for actual, _ in gradients_of_empty(name, inputs, implementation))


def gradients_of_empty(name, inputs, implementation):
    leaves = [inputs[leaf].requires_grad_() for leaf in LEAVES[name]]
    call(name, inputs, implementation)[0].sum().backward()
    return [(leaf.grad, leaf) for leaf in leaves]


@pytest.mark.parametrize("name", NAMES)
def test_other_strides(name, implementation, device):
    inputs = kernels.get(name).inputs(13, 31, device=device)
    strided = {key: x.t().contiguous().t() if torch.is_tensor(x) else x for key, x in inputs.items()}
    expected = call(name, inputs, implementation)
    for actual, contiguous in zip(call(name, strided, implementation), expected, strict=True):
        assert torch.equal(actual, contiguous)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("reward", torch.zeros(4, 5, 1)),
        ("reward", torch.zeros(4, 5, dtype=torch.int64)),
        ("next_value", torch.zeros(3, 5)),
        ("next_value", torch.zeros(4, 5, dtype=torch.float64)),
        ("next_value", torch.zeros(4, 5, device="meta")),
        ("value", torch.zeros(4, 6)),
        ("log_ratio", torch.zeros(4)),
        ("discount", torch.zeros(4, 5, dtype=torch.bool)),
        ("done", torch.zeros(4, 5)),
        ("terminated", torch.zeros(4, 5, dtype=torch.int8)),
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("lam", -0.1),
        ("rho_clip", -1.0),
        ("c_clip", float("nan")),
    ],
)
def test_an_input_that_does_not_fit_is_named(name, argument, wrong):
    inputs = kernels.get(name).inputs(4, 5)
    optional = {"vtrace": ("lam", "rho_clip", "c_clip")}.get(name, ())
    if argument in (*inputs, *optional):
        with pytest.raises(ValueError, match=f"{name}: {argument} must"):
            call(name, {**inputs, argument: wrong}, "auto")


@pytest.mark.parametrize("chosen", ["reference", "cpu"])
def test_the_operators_pass_opcheck(chosen):
    x = kernels.get("lambda_return").inputs(3, 5)
    leaves = [x[name].requires_grad_() for name in LEAVES["lambda_return"]]
    torch.library.opcheck(torch.ops.pi_incubator.returns, (*leaves, None, None, 1.0, 0.9, chosen))
    x = kernels.get("td_lambda").inputs(3, 5)
    tensors = (x["reward"].requires_grad_(), x["next_value"], None, x["terminated"], x["done"])
    torch.library.opcheck(torch.ops.pi_incubator.returns, (*tensors, 0.9, 1.0, chosen))
    gradient = torch.randn(3, 5)
    backward = (gradient, None, x["next_value"], None, x["terminated"], x["done"], 0.9, 0.8, chosen)
    torch.library.opcheck(torch.ops.pi_incubator.returns_backward, backward)
    x = kernels.get("vtrace").inputs(3, 5)
    tensors = [tensor for tensor in x.values() if torch.is_tensor(tensor)]
    torch.library.opcheck(torch.ops.pi_incubator.vtrace, (*tensors, 0.9, 0.8, 1.0, 1.0, chosen))


@pytest.mark.parametrize("name", NAMES)
def test_compiles_into_one_graph(name):
    compiled = torch.compile(kernels.get(name).call, fullgraph=True, backend="aot_eager")
    inputs = kernels.get(name).inputs(5, 7)
    results = compiled(**inputs)
    for actual, eager in zip(
        results if name == "vtrace" else [results], call(name, inputs, "auto"), strict=True
    ):
        assert torch.equal(actual, eager)
    if name in LEAVES:
        leaves = [inputs[leaf].requires_grad_() for leaf in LEAVES[name]]
        weight = torch.randn(5, 7)
        expected = gradients(*call(name, inputs, "auto"), leaves, weight)
        for actual, eager in zip(gradients(compiled(**inputs), leaves, weight), expected, strict=True):
            assert torch.equal(actual, eager)


def test_vtrace_is_a_constant_to_autograd(implementation, device):
    inputs = kernels.get("vtrace").inputs(3, 5, device=device)
    inputs["value"].requires_grad_()
    assert not any(result.requires_grad for result in call("vtrace", inputs, implementation))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(24, 4096), (128, 8192), (2048, 8)])
def test_on_hardware_at_full_size_in_a_graph(name, shape):
    inputs = kernels.get(name).inputs(*shape, device="cuda")
    call(name, inputs, "triton")  # builds the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(name, inputs, "triton")
    graph.replay()
    for actual, exact in zip(captured, call(name, to(inputs, torch.float64), "reference"), strict=True):
        assert relative_error(actual, exact) <= 1e-5
