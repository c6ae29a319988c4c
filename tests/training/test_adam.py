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
