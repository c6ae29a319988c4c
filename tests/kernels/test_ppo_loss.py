"""The losses of PPO in every implementation, against float64 and against TorchRL's ClipPPOLoss."""

import math
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch.distributions import Categorical, Independent, Normal
from torchrl.modules import IndependentNormal
from torchrl.objectives import ClipPPOLoss

from kernels.ppo_loss import PPOLoss, op, ppo_loss

# The interpreter is slow, and test_triton.py starts it beside everything else.
NUM_EXAMPLES = 30 if os.environ.get("TRITON_INTERPRET") == "1" else 400
LOSSES = ("loss_objective", "loss_critic", "loss_entropy")
LEAVES = ("mean", "log_std", "logits", "value")
# Nothing that a factor of a loss could hide behind.
WEIGHTS = {"loss_objective": 1.3, "loss_critic": -0.7, "loss_entropy": 2.1}
POLICIES = ("shared", "own", "categorical")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def make_case(policy, num_rows=37, width=5, seed=0, clip_epsilon=0.2, clip_value=0.2, masked=True, **options):
    """Arguments whose float64 result does not hang on the last digit of float32.

    Ratios stay away from where they are clipped, and values are multiples of 1/64: their differences are
    exact, so that both sides see the same ties of the clamped and the free value.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    if policy == "categorical":
        case = {"logits": 2.0 * randn(num_rows, width)}
        case["action"] = torch.randint(width, (num_rows,), generator=generator)
        log_prob = Categorical(logits=case["logits"].double()).log_prob(case["action"])
    else:
        case = {"mean": randn(num_rows, width), "action": randn(num_rows, width)}
        case["log_std"] = 0.4 * randn(*(num_rows, width)[policy == "shared" :]) - 0.3
        case["action"] = case["mean"] + case["log_std"].exp() * case["action"]
        normal = Normal(case["mean"].double(), case["log_std"].double().exp())
        log_prob = normal.log_prob(case["action"].double()).sum(-1)
    log_ratio = 0.3 * randn(num_rows)
    for bound in (math.log1p(-clip_epsilon), math.log1p(clip_epsilon)):
        log_ratio = torch.where((log_ratio - bound).abs() < 1e-3, bound + 5e-3, log_ratio)
    case["log_prob"] = (log_prob - log_ratio).float()
    case["advantage"] = 2.0 * randn(num_rows)
    for name in ("value", "old_value", "value_target"):
        case[name] = (64.0 * randn(num_rows)).round() / 64.0
    if masked:
        case["mask"] = torch.rand(num_rows, generator=generator) < 0.8
    return {**case, "clip_epsilon": clip_epsilon, "clip_value": clip_value, **options}


def cast(case, *args):
    """Floating-point tensors to a dtype or device."""
    return {
        name: x.to(*args)
        if isinstance(x, torch.Tensor) and (x.is_floating_point() or args[0] == "cuda")
        else x
        for name, x in case.items()
    }


def evaluate(case, implementation, loss=ppo_loss):
    """Results and the gradients of a weighted sum of the losses, by name."""
    leaves = {name: case[name].detach().clone().requires_grad_() for name in LEAVES if name in case}
    out = loss(**{**case, **leaves}, implementation=implementation)
    total = sum(weight * getattr(out, name) for name, weight in WEIGHTS.items())
    gradients = torch.autograd.grad(total, list(leaves.values()))
    results = {name: x.detach() for name, x in out._asdict().items()}
    return results, dict(zip(leaves, gradients, strict=True))


def magnitudes(case, exact, gradients):
    """What the rounding of each result is relative to: a sum's is to what was added, not to what is left."""
    kept = case.get("mask", torch.ones_like(case["value"], dtype=torch.bool))
    mean = lambda x: x[kept].abs().sum() / kept.sum().clamp(min=1)  # noqa: E731
    log_ratio = _log_ratio(case)
    advantage = case["advantage"]
    if "advantage_mean" in case:
        advantage = (advantage.abs() + case["advantage_mean"].abs()) * case["advantage_rstd"]
    entropy = exact["entropy"].abs()
    if "mean" in case:
        entropy = mean((case["log_std"].abs() + 1.5).expand_as(case["mean"]).sum(-1))
    sizes = {name: x.abs() for name, x in exact.items()} | {
        "loss_objective": mean(log_ratio.exp() * advantage),
        "loss_entropy": case.get("entropy_coeff", 0.01) * entropy,
        "entropy": entropy,
        "kl_approx": mean(case["log_prob"].abs() + log_ratio.abs() + 1.0),
    }
    sizes |= {name: x.abs().max() if x.numel() else x.sum() for name, x in gradients.items()}
    if "mean" in case and case["log_std"].ndim == 1:
        own = {**case, "log_std": case["log_std"].expand_as(case["mean"])}
        sizes["log_std"] = evaluate(own, "reference")[1]["log_std"].abs().sum(0).max()
    return sizes


def _log_ratio(case):
    if "logits" in case:
        return (
            Categorical(logits=case["logits"], validate_args=False).log_prob(case["action"])
            - case["log_prob"]
        )
    normal = Normal(case["mean"], case["log_std"].exp(), validate_args=False)
    return normal.log_prob(case["action"]).sum(-1) - case["log_prob"]


def assert_exact(case, implementation, device):
    exact = cast(case, torch.float64)
    expected, expected_gradients = evaluate(exact, "reference")
    sizes = magnitudes(exact, expected, expected_gradients)
    results, gradients = evaluate(cast(case, device), implementation)
    for name, x in results.items():
        assert (x.shape, x.dtype) == ((), torch.float32)
        assert abs(x.item() - expected[name].item()) <= 1e-5 * sizes[name].item(), name
    for name, x in gradients.items():
        assert (x.shape, x.dtype) == (case[name].shape, torch.float32)
        error = (x.cpu().double() - expected_gradients[name]).abs()
        assert (error <= 1e-5 * sizes[name]).all(), name


@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    policy=st.sampled_from(POLICIES),
    num_rows=st.integers(0, 40) | st.sampled_from([127, 255, 256, 257, 521]),
    width=st.integers(1, 17),
    seed=st.integers(0, 2**31),
    clip_epsilon=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
    clip_value=st.sampled_from([None, 0.2, 0.5]),
    masked=st.booleans(),
    loss_critic_type=st.sampled_from(["l2", "smooth_l1"]),
    entropy_coeff=st.sampled_from([0.0, 0.01, 1.0]),
    critic_coeff=st.sampled_from([0.0, 0.5, 1.0]),
    normalized=st.booleans(),
)
def test_equals_float64(implementation, device, normalized, **options):
    case = make_case(**options)
    if normalized:
        case |= {"advantage_mean": torch.tensor(0.7), "advantage_rstd": torch.tensor(0.4)}
    assert_exact(case, implementation, device)


class Distribution(torch.nn.Module):
    def __init__(self, log_std):
        super().__init__()
        self.log_std = log_std

    def forward(self, mean):
        return mean, self.log_std.exp().expand_as(mean)


def torchrl_loss(*, implementation, clip_epsilon, entropy_coeff, critic_coeff=1.0, **case):
    """ClipPPOLoss itself on networks that hand on what they are given."""
    assert implementation == "torchrl"
    if "logits" in case:
        head = TensorDictModule(torch.nn.Identity(), in_keys=["x"], out_keys=["logits"])
        x, keys, distribution = case["logits"], ["logits"], Categorical
    else:
        head = TensorDictModule(Distribution(case["log_std"]), in_keys=["x"], out_keys=["loc", "scale"])
        x, keys, distribution = case["mean"], ["loc", "scale"], IndependentNormal
    sample = ProbabilisticTensorDictModule(
        in_keys=keys, out_keys=["action"], distribution_class=distribution, return_log_prob=True
    )
    # Not an identity: its output replaces the old value under the same name.
    critic = TensorDictModule(lambda v: v * 1.0, in_keys=["v"], out_keys=["state_value"])
    loss = ClipPPOLoss(
        ProbabilisticTensorDictSequential(head, sample),
        critic,
        clip_epsilon=clip_epsilon,
        entropy_coeff=entropy_coeff,
        critic_coeff=critic_coeff,
        loss_critic_type=case["loss_critic_type"],
        clip_value=case["clip_value"],
        functional=False,
    )
    data = {
        "x": x,
        "v": case["value"].unsqueeze(-1),
        "action": case["action"],
        "action_log_prob": case["log_prob"],
        "advantage": case["advantage"].unsqueeze(-1),
        "state_value": case["old_value"].unsqueeze(-1),
        "value_target": case["value_target"].unsqueeze(-1),
    }
    out = loss(TensorDict(data, [len(x)]))
    return PPOLoss(*(out[name] for name in PPOLoss._fields))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("loss_critic_type", ["l2", "smooth_l1"])
@pytest.mark.parametrize("clip_value", [None, 0.2, 0.5])
def test_equals_torchrl(policy, loss_critic_type, clip_value, implementation, device):
    for seed in range(2):
        case = make_case(
            policy,
            num_rows=61,
            width=7,
            seed=seed,
            clip_value=clip_value,
            masked=False,
            loss_critic_type=loss_critic_type,
            entropy_coeff=0.03,
            critic_coeff=0.5,
        )
        exact = cast(case, torch.float64)
        expected, expected_gradients = evaluate(exact, "torchrl", torchrl_loss)
        sizes = magnitudes(exact, expected, expected_gradients)
        results, gradients = evaluate(cast(case, device), implementation)
        assert set(results) == set(expected)
        for name, x in results.items():
            assert abs(x.item() - expected[name].item()) <= 1e-5 * sizes[name].item(), name
        for name, x in gradients.items():
            assert ((x.cpu() - expected_gradients[name]).abs() <= 1e-5 * sizes[name]).all(), name


@pytest.mark.parametrize("policy", POLICIES)
def test_the_reference_equals_torchrl_in_float64(policy):
    case = cast(
        make_case(policy, clip_value=0.25, masked=False, loss_critic_type="l2", entropy_coeff=1 / 32),
        torch.float64,
    )
    expected, expected_gradients = evaluate(case, "torchrl", torchrl_loss)
    results, gradients = evaluate(case, "reference")
    for name in expected.keys() - {"loss_objective"}:
        torch.testing.assert_close(results[name], expected[name].double(), rtol=1e-12, atol=1e-12)
    # TorchRL keeps settings in float32: 1/32 and 0.25 are exact there, the bounds of the ratio are not.
    torch.testing.assert_close(results["loss_objective"], expected["loss_objective"], rtol=0, atol=1e-7)
    for name, x in gradients.items():
        torch.testing.assert_close(x, expected_gradients[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_mask_hides_may_be_nan(policy, implementation, device):
    case = cast(make_case(policy), device)
    hidden = dict(case)
    for name, x in case.items():
        if isinstance(x, torch.Tensor) and x.is_floating_point() and len(x) == len(case["mask"]):
            hidden[name] = x.clone()
            hidden[name][~case["mask"]] = torch.nan
    clean, clean_gradients = evaluate(case, implementation)
    results, gradients = evaluate(hidden, implementation)
    assert results == clean
    for name, x in gradients.items():
        assert torch.equal(x, clean_gradients[name])
        if len(x) == len(case["mask"]):
            assert (x[~case["mask"]] == 0).all()
    kept = {
        name: x[case["mask"]] if isinstance(x, torch.Tensor) and len(x) == len(case["mask"]) else x
        for name, x in case.items()
        if name != "mask"
    }
    selected, _ = evaluate(kept, implementation)
    for name, x in selected.items():
        torch.testing.assert_close(x, clean[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["own", "categorical"])
@pytest.mark.parametrize("name", ["policy", "log_prob", "advantage", "value", "value_target"])
def test_nan_stays_with_its_sample(policy, name, implementation, device):
    case = cast(make_case(policy, masked=False), device)
    row = 3
    case["mean" if policy == "own" and name == "policy" else "logits" if name == "policy" else name][row] = (
        torch.nan
    )
    _, gradients = evaluate(case, implementation)
    for x in gradients.values():
        others = torch.arange(len(x)) != row
        assert x[others].isfinite().all()
    damaged = gradients["value"] if "value" in name else gradients["mean" if policy == "own" else "logits"]
    assert damaged[row].isnan().any()


@pytest.mark.parametrize("policy", POLICIES)
def test_no_sample_is_no_loss(policy, implementation, device):
    nothing = cast(make_case(policy), device)
    nothing["mask"] = torch.zeros_like(nothing["mask"])
    for case in (nothing, cast(make_case(policy, num_rows=0), device)):
        results, gradients = evaluate(case, implementation)
        assert all(x == 0 for x in results.values())
        assert all((x == 0).all() for x in gradients.values())


def test_a_ratio_beyond_float32(implementation, device):
    case = cast(make_case("shared", num_rows=2, masked=False), device)
    case["log_prob"] -= 200.0
    case["advantage"] = torch.tensor([1.0, 3.0], device=device)
    results, _ = evaluate(case, implementation)
    assert results["loss_objective"].item() == pytest.approx(-1.2 * 2.0)
    assert results["mean_ratio"].isinf()
    case["advantage"] = -case["advantage"]
    assert evaluate(case, implementation)[0]["loss_objective"] == torch.inf


def test_an_action_that_cannot_be_taken(implementation, device):
    case = cast(make_case("categorical", masked=False), device)
    fewer = {**case, "action": case["action"] % 4, "logits": case["logits"][:, :4]}
    barred = {**fewer, "logits": case["logits"].clone()}
    barred["logits"][:, 4] = -torch.inf
    results, gradients = evaluate(barred, implementation)
    expected, expected_gradients = evaluate(fewer, implementation)
    for name, x in results.items():
        torch.testing.assert_close(x, expected[name], rtol=1e-5, atol=1e-6)
    assert (gradients["logits"][:, 4] == 0).all()
    torch.testing.assert_close(gradients["logits"][:, :4], expected_gradients["logits"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("action", [-1, 5, 2**40])
def test_an_action_that_does_not_exist_shows(action, implementation, device):
    case = cast(make_case("categorical", masked=False), device)
    case["action"][3] = action
    results, _ = evaluate(case, implementation)
    assert results["loss_objective"].isnan()
    assert results["loss_critic"].isfinite()


@pytest.mark.parametrize("policy", POLICIES)
def test_other_strides(policy, implementation, device):
    case = cast(make_case(policy), device)
    strided = {}
    for name, x in case.items():
        strided[name] = x
        if isinstance(x, torch.Tensor):
            strided[name] = x.unsqueeze(-1).expand(*x.shape, 2).contiguous().select(-1, 0)
            assert not strided[name].is_contiguous()
    results, gradients = evaluate(strided, implementation)
    expected, expected_gradients = evaluate(case, implementation)
    assert results == expected
    assert all(torch.equal(x, expected_gradients[name]) for name, x in gradients.items())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(policy, dtype, implementation, device):
    halves = cast(make_case(policy), dtype)
    rounded = cast(halves, torch.float64)
    expected, expected_gradients = evaluate(rounded, "reference")
    sizes = magnitudes(rounded, expected, expected_gradients)
    results, gradients = evaluate(cast(halves, device), implementation)
    for name, x in results.items():
        assert x.dtype == torch.float32
        assert abs(x.item() - expected[name].item()) <= 1e-5 * sizes[name].item(), name
    for name, x in gradients.items():
        assert x.dtype == dtype
        error = (x.cpu().double() - expected_gradients[name]).abs()
        assert (error <= torch.finfo(dtype).eps * sizes[name]).all(), name


def test_mixed_as_autocast_leaves_them(implementation, device):
    case = make_case("shared")
    case["mean"], case["value"] = case["mean"].bfloat16(), case["value"].bfloat16()
    expected, _ = evaluate(cast(case, torch.float64), "reference")
    results, gradients = evaluate(cast(case, device), implementation)
    assert results["loss_critic"].item() == pytest.approx(expected["loss_critic"].item(), rel=1e-5)
    assert gradients["mean"].dtype == torch.bfloat16
    assert gradients["log_std"].dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
def test_one_loss_alone(name, implementation, device):
    """Backward without a gradient for the other two."""
    exact = cast(make_case("own"), torch.float64)
    gradients = []
    for case, which in ((cast(make_case("own"), device), implementation), (exact, "reference")):
        leaves = {leaf: case[leaf].clone().requires_grad_() for leaf in ("mean", "log_std", "value")}
        loss = getattr(ppo_loss(**{**case, **leaves}, implementation=which), name)
        used = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients.append([torch.zeros(()).double() if x is None else x.cpu().double() for x in used])
    for actual, expected in zip(*gradients, strict=True):
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.compiled
def test_the_operators_pass_opcheck(policy, masked, implementation, device):
    case = cast(make_case(policy, num_rows=9, width=3, masked=masked), device)
    leaves = [case["logits"], None] if policy == "categorical" else [case["mean"], case["log_std"]]
    leaves = [None if x is None else x.requires_grad_() for x in leaves]
    value = case["value"].requires_grad_()
    rest = (case["old_value"], case["value_target"], None, None, case.get("mask"))
    settings = (0.2, 0.01, 1.0, "l2", 0.2, implementation)
    inputs = (*leaves, case["action"], case["log_prob"], case["advantage"], value, *rest, *settings)
    torch.library.opcheck(op.forward, inputs)
    report, saved = op.forward(*inputs)[3:]
    one = torch.ones((), device=device)
    leaves = [None if x is None else x.detach() for x in leaves]
    inputs = (*leaves, case["action"], value.detach(), case.get("mask"), report, saved, one, None, one)
    torch.library.opcheck(op.backward, (*inputs, 0.01, 1.0, implementation))


@pytest.mark.parametrize("policy", POLICIES)
def test_is_one_graph(policy, implementation, device):
    case = cast(make_case(policy), device)
    torch.compiler.reset()
    compiled = torch.compile(ppo_loss, fullgraph=True, backend="aot_eager")
    results, gradients = evaluate(case, implementation, compiled)
    expected, expected_gradients = evaluate(case, implementation)
    for name, x in results.items():
        torch.testing.assert_close(x, expected[name])
    for name, x in gradients.items():
        torch.testing.assert_close(x, expected_gradients[name])


def test_losses_may_be_added_in_place(implementation, device):
    case = cast(make_case("shared"), device)
    out = ppo_loss(**{**case, "mean": case["mean"].requires_grad_()}, implementation=implementation)
    loss = out.loss_objective
    loss += out.loss_critic
    loss.backward()
    assert case["mean"].grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mean", torch.zeros(37)),
        ("mean", torch.zeros(37, 0)),
        ("mean", torch.zeros(37, 5, dtype=torch.int64)),
        ("log_std", torch.zeros(4)),
        ("log_std", torch.zeros(5, dtype=torch.float64)),
        ("log_std", None),
        ("logits", torch.zeros(37, 5)),
        ("action", torch.zeros(37)),
        ("log_prob", torch.zeros(37, 1)),
        ("log_prob", torch.zeros(37, requires_grad=True)),
        ("advantage", torch.zeros(37, dtype=torch.int32)),
        ("advantage_mean", torch.zeros(())),
        ("value", torch.zeros(37, device="meta")),
        ("value_target", torch.zeros(36)),
        ("old_value", None),
        ("mask", torch.zeros(37)),
        ("clip_epsilon", 1.0),
        ("clip_epsilon", -0.1),
        ("clip_epsilon", math.nan),
        ("clip_value", 0.0),
        ("entropy_coeff", math.nan),
        ("critic_coeff", math.inf),
        ("loss_critic_type", "l1"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(name, wrong):
    with pytest.raises(ValueError, match=name):
        ppo_loss(**{**make_case("shared"), name: wrong})


@pytest.mark.parametrize("wrong", [torch.zeros(37), torch.zeros(37, 5, dtype=torch.int64)])
def test_a_categorical_action_that_does_not_fit_is_named(wrong):
    with pytest.raises(ValueError, match="action must be"):
        ppo_loss(**{**make_case("categorical"), "action": wrong})


def test_independent_normal_is_ours_of_log_std():
    """The reference's density against torch's own, in closed form."""
    case = cast(make_case("shared", masked=False), torch.float64)
    normal = Independent(Normal(case["mean"], case["log_std"].exp()), 1)
    out = ppo_loss(**case, implementation="reference")
    expected = (case["log_prob"] - normal.log_prob(case["action"])).mean()
    torch.testing.assert_close(out.kl_approx, expected)
    torch.testing.assert_close(out.entropy, normal.entropy().mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", POLICIES)
def test_on_hardware_at_full_size_in_a_graph_and_the_same_every_time(policy):
    case = cast(make_case(policy, num_rows=24576, width=12), "cuda")
    assert_exact(make_case(policy, num_rows=24576, width=12), "triton", "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        first = ppo_loss(**case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ppo_loss(**case)
    for _ in range(100):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(first, captured, strict=True))
