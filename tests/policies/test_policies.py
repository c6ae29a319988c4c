"""Policies: their densities are torch's, their actions lie within limits, and sequences are their steps."""

import math
from dataclasses import replace

import onnxruntime
import pytest
import torch
from torch import nn
from torch.distributions import (
    AffineTransform,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.models import NETWORKS
from pi_incubator.distillation.loss import gaussian_kl
from pi_incubator.layers.encoder import restarted
from pi_incubator.networks import make_network
from pi_incubator.policies.categorical import CategoricalPolicy
from pi_incubator.policies.deterministic import DeterministicPolicy
from pi_incubator.policies.gaussian import GaussianPolicy
from pi_incubator.policies.normal import entropy_of, log_prob_of
from pi_incubator.policies.squashed_gaussian import LOG_STD_RANGE, SquashedGaussian, SquashedGaussianPolicy
from pi_incubator.registry import networks

CPU = torch.device("cpu")
T, N, D = 9, 5, 4
LOW, HIGH = (-1.0, -3.0), (1.0, 0.5)
SPEC = EnvSpec("toy", N, {"policy": D, "critic": 6}, 2, LOW, HIGH, ("a", "b"), 50.0, 100, CPU)
SHAPE = (2, 16, 16)
K = 3
CHOICES = replace(SPEC, action_dim=1, action_low=(0.0,), action_high=(K - 1.0,), num_choices=K)
POLICIES = [GaussianPolicy, SquashedGaussianPolicy, DeterministicPolicy]


def make_policy(kind, network="mlp", spec=SPEC, gain=100.0, **settings):
    """A policy whose actions depend on what it sees, and whose normalizer has seen data."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": (8,), "channels": (4,)}
    member = NETWORKS.members[network]
    known = {key: value for key, value in sizes.items() if key in member.model_fields}
    settings = member(**known, **settings)
    policy = kind(settings, make_network(settings, spec), spec)
    with torch.no_grad():
        last = policy.head[-1] if isinstance(policy.head, nn.Sequential) else policy.head
        last.weight.mul_(gain)  # a head begins near zero
    policy.normalizer.observe(observations(64, policy))
    policy.normalizer.commit()
    return policy


def observations(*batch_and_policy, seed=0):
    *batch, policy = batch_and_policy
    random, obs = torch.Generator().manual_seed(seed), {}
    for group in policy.normalizer:
        if group == "pixels":
            obs[group] = torch.randint(0, 256, (*batch, *SHAPE), dtype=torch.uint8, generator=random)
        else:
            obs[group] = 2.0 + 3.0 * torch.randn(*batch, SPEC.obs_dims[group], generator=random)
    return obs


def in_float64(policy):
    """The policy, and raw observations, noise and state for it, in float64."""
    obs = {group: value.double() for group, value in observations(N, policy).items()}
    noise = torch.randn(N, 2, generator=torch.Generator().manual_seed(1)).double()
    return policy.double(), obs, policy.initial_state(N).double(), noise


def test_the_density_of_a_gaussian_is_torchs():
    policy, obs, state, noise = in_float64(make_policy(GaussianPolicy))
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-1.0, 0.3]))
    step = policy.act(obs, state, noise)
    mean, std = policy.moments_of(step.features)
    torch.testing.assert_close(step.action, mean + std * noise)
    torch.testing.assert_close(std, torch.tensor([-1.0, 0.3]).double().exp().expand(N, 2))
    torch.testing.assert_close(step.log_prob, Independent(Normal(mean, std), 1).log_prob(step.action))


def test_a_standard_deviation_that_depends_on_the_observation():
    """Density and entropy are torch's, actions that are sampled have it, and it stays within its limits."""
    policy, obs, state, noise = in_float64(make_policy(GaussianPolicy, gain=1000.0, state_dependent_std=True))
    step = policy.act(obs, state, noise)
    mean, std, _ = policy.moments(obs, state)
    expected = Independent(Normal(mean, std), 1)
    torch.testing.assert_close(step.action, mean + std * noise)
    torch.testing.assert_close(step.log_prob, expected.log_prob(step.action))
    ours = policy.distribution(step.features)
    torch.testing.assert_close(ours.log_prob(step.action), step.log_prob)
    torch.testing.assert_close(ours.entropy(), expected.entropy())
    assert std.std(0).min() > 0.1  # it does depend on it
    raw_mean, raw = policy.head(step.features).chunk(2, -1)
    assert raw.min() < -5.0
    assert raw.max() > 2.0
    torch.testing.assert_close(std, raw.clamp(-5.0, 2.0).exp())
    action, _ = policy.mean(obs, state)
    torch.testing.assert_close(action, raw_mean.clamp(torch.tensor(LOW), torch.tensor(HIGH)))


def test_a_dependent_standard_deviation_begins_as_the_settings_say():
    settings = NETWORKS.members["mlp"](state_dependent_std=True, init_log_std=-1.5)
    policy = GaussianPolicy(settings, make_network(settings, SPEC), SPEC)
    _, std, _ = policy.moments(observations(50, policy), policy.initial_state(50))
    torch.testing.assert_close(std, torch.full_like(std, math.exp(-1.5)), rtol=0.05, atol=0)
    assert not [name for name, _ in policy.named_parameters() if "log_std" in name]


def test_the_divergence_of_dependent_standard_deviations_is_torchs():
    """What distillation minimizes, with a teacher and a student of this kind."""
    teacher, student = (
        make_policy(GaussianPolicy, network, state_dependent_std=True, gain=20.0)
        for network in ("mlp", "gru")
    )
    obs = observations(N, teacher)
    (mean, std, _), (other_mean, other_std, _) = (
        policy.moments(obs, policy.initial_state(N)) for policy in (teacher, student)
    )
    expected = kl_divergence(Normal(mean, std), Normal(other_mean, other_std)).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, std, other_mean, other_std), expected)
    assert expected.min() > 0.01


def squashed(loc, scale):
    """The distribution of the action in the env's units, by torch."""
    low, high = torch.tensor(LOW).double(), torch.tensor(HIGH).double()
    units = AffineTransform((low + high) / 2, (high - low) / 2)
    return TransformedDistribution(Normal(loc, scale), [TanhTransform(), units])


def test_the_density_of_a_squashed_gaussian_is_torchs():
    policy, obs, state, noise = in_float64(make_policy(SquashedGaussianPolicy, gain=50.0))
    step = policy.act(obs, state, noise)
    loc, scale = policy.before_tanh(step.features)
    assert loc.std() > 0.1
    expected = squashed(loc, scale).log_prob(step.action).sum(-1)
    torch.testing.assert_close(step.log_prob, expected, rtol=1e-9, atol=1e-9)
    units = [(torch.tensor(HIGH) - torch.tensor(LOW)) / 2, (torch.tensor(HIGH) + torch.tensor(LOW)) / 2]
    torch.testing.assert_close(step.action, units[1] + units[0] * (loc + scale * noise).tanh())


@pytest.mark.parametrize("loc", [-30.0, 0.0, 30.0])
def test_the_density_stays_finite_where_tanh_saturates(loc):
    """log(1 - tanh(x)^2) is 2 (log 2 - |x|) to the last digit far from zero."""
    noise = torch.tensor([[0.5, -0.5]])
    distribution = SquashedGaussian(torch.full((1, 2), loc), torch.full((1, 2), 0.1), noise)
    action, log_prob = distribution.rsample_and_log_prob()
    before = loc + 0.1 * noise.double()
    far = 2 * (math.log(2.0) - before.abs())
    jacobian = far if loc else torch.log1p(-before.tanh().square())
    expected = (Normal(loc, 0.1).log_prob(before) - jacobian).sum(-1)
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-5, atol=1e-5)
    assert action.abs().max() <= 1


def test_actions_convert_to_the_unit_and_back():
    policy = make_policy(SquashedGaussianPolicy)
    unit = torch.rand(50, 2) * 2 - 1
    torch.testing.assert_close(policy.to_unit(policy.to_env_units(unit)), unit)
    limits = policy.to_env_units(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    torch.testing.assert_close(limits, torch.tensor([LOW, HIGH]))


@pytest.mark.parametrize("kind", POLICIES)
def test_the_deterministic_action_lies_within_the_limits(kind):
    policy = make_policy(kind, gain=3000.0)
    action, _ = policy.mean(observations(500, policy), policy.initial_state(500))
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    assert ((low <= action) & (action <= high)).all()
    assert (action.amin(0) <= low + 1e-3).all()  # and reaches both of them
    assert (action.amax(0) >= high - 1e-3).all()


def test_samples_of_a_squashed_policy_lie_within_the_limits():
    policy = make_policy(SquashedGaussianPolicy, gain=1000.0)
    step = policy.act(observations(500, policy), policy.initial_state(500), 3 * torch.randn(500, 2))
    assert ((torch.tensor(LOW) <= step.action) & (step.action <= torch.tensor(HIGH))).all()
    assert step.log_prob.isfinite().all()


def test_the_spread_of_a_squashed_policy_stays_in_its_range():
    policy = make_policy(SquashedGaussianPolicy, gain=10_000.0)
    _, scale = policy.before_tanh(policy.encoder(*wide(policy))[0])
    low, high = LOG_STD_RANGE
    scale = scale.detach()
    assert scale.log().min() == pytest.approx(low, abs=1e-3)
    assert scale.log().max() == pytest.approx(high, abs=1e-3)


def wide(policy):
    return policy.normalizer(observations(500, policy))["policy"], policy.initial_state(500)


@pytest.mark.parametrize("kind", POLICIES)
def test_the_moments_are_those_of_sampled_actions(kind):
    """To first order for the squashed one, which is exact where the spread is small."""
    policy, number = make_policy(kind, gain=30.0), 20_000
    with torch.no_grad():
        if kind is GaussianPolicy:
            policy.log_std.fill_(-2.0)
        else:
            policy.head[-1].bias[2:] = -3.0
    obs = {group: value.repeat(number, 1) for group, value in observations(1, policy).items()}
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        step = policy.act(obs, policy.initial_state(number), torch.randn(number, 2, generator=random))
        mean, std, _ = policy.moments(obs, policy.initial_state(number))
    torch.testing.assert_close(step.action.std(0), std[0], rtol=0.03, atol=0)
    assert ((step.action.mean(0) - mean[0]).abs() < 5 * std[0] / number**0.5 + 1e-3 * std[0]).all()


def test_choices_are_taken_as_often_as_they_are_probable():
    """Log-probability and entropy are torch's; the deterministic action is the most probable choice."""
    policy, number = make_policy(CategoricalPolicy, spec=CHOICES), 20_000
    obs = {group: value.repeat(number, 1) for group, value in observations(1, policy).items()}
    noise = torch.randn(number, 1, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        step = policy.act(obs, policy.initial_state(number), noise)
        expected = torch.distributions.Categorical(logits=policy.head(step.features))
        action, _ = policy.mean(obs, policy.initial_state(number))
        mean, std, _ = policy.moments(obs, policy.initial_state(number))
    assert step.action.shape == (number, 1)
    share = torch.bincount(step.action.long().squeeze(-1), minlength=K) / number
    assert ((share - expected.probs[0]).abs() < 5 * (expected.probs[0] / number).sqrt()).all()
    assert (expected.probs[0] > 0.02).all()
    torch.testing.assert_close(step.log_prob, expected.log_prob(step.action.squeeze(-1)))
    assert (action == expected.probs[0].argmax()).all()
    torch.testing.assert_close(step.action.mean(0), mean[0], rtol=0.03, atol=0)
    torch.testing.assert_close(step.action.std(0), std[0], rtol=0.03, atol=0)
    ours = policy.distribution(step.features)
    torch.testing.assert_close(ours.entropy(), expected.entropy())
    torch.testing.assert_close(ours.log_prob(step.action), step.log_prob)
    assert set(ours.sample().unique().tolist()) <= {0.0, 1.0, 2.0}


@pytest.mark.parametrize(("key", "value"), [("init_log_std", -1.0), ("state_dependent_std", True)])
def test_a_standard_deviation_of_choices_is_refused(key, value):
    settings = NETWORKS.members["mlp"](**{key: value})
    with pytest.raises(SettingError, match=rf"network.{key} = {value}: has no effect on the discrete"):
        CategoricalPolicy(settings, make_network(settings, CHOICES), CHOICES)


@pytest.mark.parametrize(
    ("kind", "network", "settings"),
    [
        *((kind, network, {}) for kind in (*POLICIES, CategoricalPolicy) for network in ("mlp", "gru")),
        (GaussianPolicy, "mlp", {"state_dependent_std": True}),
    ],
)
def test_the_onnx_form_acts_like_the_policy(kind, network, settings, tmp_path):
    spec = CHOICES if kind is CategoricalPolicy else SPEC
    policy = make_policy(kind, network, spec, gain=300.0, **settings)
    path, batch = tmp_path / "policy.onnx", N
    width, size = policy.state_width, torch.export.Dim("batch")
    inputs = {"observation": observations(batch, policy)["policy"]}
    if width:
        inputs["hidden"] = torch.randn(batch, width).tanh()
    outputs = ["action", "hidden_out"][: len(inputs)]
    torch.onnx.export(
        policy.as_onnx().eval(),
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=({0: size},) * len(inputs),
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(outputs, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        obs = {"policy": inputs["observation"]}
        expected = policy.mean(obs, inputs.get("hidden", policy.initial_state(batch)))
    for ours, theirs in zip(found, expected[: len(outputs)], strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", networks.names())
def test_a_sequence_is_what_its_steps_are(network):
    """With the resets of episodes, from a state that is not zero where the network has one."""
    pixels = SHAPE if NETWORKS.members[network].sees_pixels else None
    spec = EnvSpec("toy", N, SPEC.obs_dims, 2, LOW, HIGH, ("a", "b"), 50.0, 100, CPU, pixels)
    policy = make_policy(GaussianPolicy, network, spec)
    obs = observations(T, N, policy, seed=3)
    starts = torch.rand(T, N, generator=torch.Generator().manual_seed(4)) < 0.25
    state = first = torch.randn(N, policy.state_width)
    actions, stepped = [], []
    with torch.no_grad():
        normalized = {group: policy.normalizer[group](value) for group, value in obs.items()}
        at_once = policy.sequence(normalized, first, starts)
        for t in range(T):
            state = restarted(state, starts[t])
            now = {group: value[t] for group, value in obs.items()}
            step = policy.act(now, state, torch.zeros(N, 2))
            action, after = policy.mean(now, state)
            assert torch.equal(after, step.state)
            state = step.state
            actions.append(action)
            stepped.append(step.features)
        torch.testing.assert_close(at_once, torch.stack(stepped))
        torch.testing.assert_close(policy.action_of(at_once), torch.stack(actions))
    assert at_once.shape == (T, N, policy.encoder.num_features)
    if policy.state_width:  # and the resets matter
        without = policy.sequence(normalized, first, torch.zeros_like(starts))
        assert not torch.allclose(at_once, without)


def test_a_policy_reads_its_own_group_alone():
    """What only the critic sees changes nothing, and a privileged policy reads it on purpose."""
    for network, group in (("mlp", "policy"), ("gru", "policy"), ("encoders", "critic")):
        settings = {"actor": {group: "mlp"}} if network == "encoders" else {}
        policy = make_policy(GaussianPolicy, network, **settings)
        assert policy.groups == (group,)
        obs = observations(N, policy)
        action, _ = policy.mean({group: obs[group]}, policy.initial_state(N))
        assert action.shape == (N, 2)


def test_densities_and_entropies_are_torchs():
    value, mean, std = torch.randn(3, N, 2, generator=torch.Generator().manual_seed(0)).double()
    normal = Independent(Normal(mean, std.exp()), 1)
    torch.testing.assert_close(log_prob_of(value, mean, std.exp()), normal.log_prob(value))
    torch.testing.assert_close(entropy_of(std.exp()), normal.entropy())
