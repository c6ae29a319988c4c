"""The losses against torch's own distributions, and the rounding against torch's own quantized tensors."""

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from pi_incubator.distillation.loss import gaussian_kl, mean_loss, scaled_mse, unexplained
from pi_incubator.distillation.quantize import FakeQuantizedLinear, make_plain, watch_ranges


@pytest.fixture
def gaussians():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 64, 5, generator=generator, dtype=torch.float64)
    stds = torch.rand(2, 64, 5, generator=generator, dtype=torch.float64) + 0.1
    return means[0], stds[0], means[1], stds[1]


def test_kl_is_that_of_torch_from_teacher_to_student(gaussians):
    mean, std, student_mean, student_std = gaussians
    teacher, student = Independent(Normal(mean, std), 1), Independent(Normal(student_mean, student_std), 1)
    torch.testing.assert_close(gaussian_kl(*gaussians), kl_divergence(teacher, student))
    torch.testing.assert_close(mean_loss("kl", *gaussians), kl_divergence(teacher, student).mean())


def test_mse_is_the_kl_of_equal_spreads(gaussians):
    mean, std, student_mean, student_std = gaussians
    expected = kl_divergence(Normal(mean, std), Normal(student_mean, std)).sum(-1)
    torch.testing.assert_close(scaled_mse(mean, std, student_mean), expected)
    torch.testing.assert_close(mean_loss("mse", mean, std, student_mean, student_std), expected.mean())


def test_the_best_spread_under_kl_tells_how_far_the_means_are_off():
    mean, student_mean = torch.zeros(1000, 1), torch.randn(1000, 1) * 0.5
    log_std = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([log_std], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        gaussian_kl(mean, torch.full_like(mean, 0.1), student_mean, log_std.exp()).mean().backward()
        optimizer.step()
    expected = (student_mean.square().mean() + 0.1**2).sqrt()
    torch.testing.assert_close(log_std.exp().squeeze(), expected, rtol=1e-2, atol=0.0)


def test_unexplained_is_one_for_the_mean_and_zero_for_the_target():
    target = torch.randn(500, 3) * 1000.0 + 7.0
    assert unexplained(target, target) == 0
    assert unexplained(target, target.mean(0).expand_as(target)) == pytest.approx(1.0, rel=1e-2)
    assert unexplained(torch.ones(10), torch.ones(10)) == 0


@pytest.fixture
def rounding():
    torch.manual_seed(0)
    layer = FakeQuantizedLinear(nn.Linear(6, 4))
    features = torch.randn(100, 6) + 0.5
    layer(features)  # watches
    layer.rounds = True
    return layer.eval(), features


def test_rounding_is_that_of_quantized_tensors(rounding):
    layer, features = rounding
    scale = features.abs().max().item() / 127
    inputs = torch.quantize_per_tensor(features, scale, 0, torch.qint8).dequantize()
    scales = layer.weight.detach().abs().amax(1) / 127
    zeros = torch.zeros(4, dtype=torch.long)
    weight = torch.quantize_per_channel(layer.weight.detach(), scales, zeros, 0, torch.qint8).dequantize()
    torch.testing.assert_close(layer(features), inputs @ weight.T + layer.bias)
    assert not torch.equal(layer(features), nn.functional.linear(features, layer.weight, layer.bias))


def test_gradients_pass_the_rounding(rounding):
    layer, features = rounding
    inside = features[(features.abs() < 1).all(-1)].requires_grad_()
    layer(inside).sum().backward()
    plain = torch.autograd.grad(nn.functional.linear(inside, layer.weight, layer.bias).sum(), inside)[0]
    torch.testing.assert_close(inside.grad, plain, rtol=0.05, atol=0.02)
    assert layer.weight.grad.abs().min() > 0


def test_watching_changes_neither_names_nor_results():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    names, features = list(network.state_dict()), torch.randn(10, 3)
    expected = network(features)
    layers = watch_ranges(network)
    assert list(network.state_dict()) == names
    assert torch.equal(network(features), expected)
    assert [layer.in_features for layer in layers] == [5]  # the first one is never rounded
    for layer in layers:
        layer.rounds = True
    assert not torch.equal(network(features), expected)
    make_plain(network)
    assert torch.equal(network(features), expected)
    assert {type(layer) for layer in network} == {nn.Linear, nn.Tanh}
