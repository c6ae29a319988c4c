"""Adam equals torch's, whatever the memory layout of a gradient."""

import torch

from pi_incubator.training.adam import Adam


def test_a_transposed_gradient_moves_the_weights_that_it_belongs_to():
    """The step is that of torch.optim.Adam, also where a gradient is a transposed view."""
    weight = torch.arange(12.0).reshape(3, 4)
    expected = torch.nn.Parameter(weight.clone())
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).t()
    assert not gradient.is_contiguous()
    reference = torch.optim.Adam([expected], lr=0.1)
    adam = Adam([weight], torch.tensor(0.1))
    for factor in (1.0, -0.3, 2.0):
        expected.grad = (factor * gradient).contiguous()
        reference.step()
        adam.step([factor * gradient], torch.tensor(True))
    torch.testing.assert_close(weight, expected.detach())


def test_the_step_that_is_compiled_is_torchs_in_float64(monkeypatch):
    """Over a hundred steps of gradients of very different sizes; and where it is not sound, nothing moves."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    expected = [torch.nn.Parameter(weight.double()) for weight in weights]
    reference = torch.optim.Adam(expected, lr=1e-2)
    adam = Adam(weights, torch.tensor(1e-2))
    for _ in range(100):
        gradients = [10 * torch.randn(weight.shape, generator=generator) ** 5 for weight in weights]
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient.double()
        reference.step()
        adam.step(gradients, torch.tensor(True))
    for weight, parameter in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.double(), parameter.detach(), rtol=0, atol=2e-6)
    before = {name: value.clone() for name, value in adam.state_dict().items()}
    moved = [weight.clone() for weight in weights]
    adam.step([torch.full_like(weight, torch.nan) for weight in weights], torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in adam.state_dict().items())
    assert all(torch.equal(weight, old) for weight, old in zip(weights, moved, strict=True))
