"""Two-hot codes of symexp bins are TorchRL's."""

import pytest
import torch
from torchrl.objectives.dreamer_v3 import (
    symexp as torchrl_symexp,
)
from torchrl.objectives.dreamer_v3 import (
    symlog as torchrl_symlog,
)
from torchrl.objectives.dreamer_v3 import (
    two_hot_cross_entropy,
    two_hot_decode,
    two_hot_encode,
)

from pi_incubator.layers.two_hot import SymexpTwoHot, symexp, symlog

VALUES = torch.tensor([-1e9, -3000.0, -1.0, -0.3, -1e-6, 0.0, 1e-4, 0.7, 1.0, 42.0, 1e5, 4.8e8, 1e12])


def make(num_bins=41):
    return SymexpTwoHot(num_bins).double()


def test_symlog_and_symexp_are_torchrls():
    values = VALUES.double()
    torch.testing.assert_close(symlog(values), torchrl_symlog(values))
    torch.testing.assert_close(symexp(symlog(values)), values)
    torch.testing.assert_close(symexp(torch.linspace(-5, 5, 11)), torchrl_symexp(torch.linspace(-5, 5, 11)))


@pytest.mark.parametrize("num_bins", [3, 41, 255])
def test_a_code_is_torchrls_and_its_mean_is_the_value(num_bins):
    two_hot, values = make(num_bins), VALUES.double()
    code = two_hot.encode(values)
    torch.testing.assert_close(code, two_hot_encode(values, two_hot.bins), rtol=0, atol=1e-12)
    torch.testing.assert_close(code.sum(-1), torch.ones_like(values))
    inside = values.clamp(two_hot.bins[0], two_hot.bins[-1])
    torch.testing.assert_close((code * two_hot.bins).sum(-1), inside, rtol=1e-9, atol=1e-6)


def test_value_loss_and_gradient_of_logits_are_torchrls():
    two_hot, random = make(), torch.Generator().manual_seed(0)
    logits = torch.randn(len(VALUES), 41, generator=random).double().requires_grad_()
    ours, theirs = two_hot.value(logits), two_hot_decode(logits, two_hot.bins)
    torch.testing.assert_close(ours, theirs)
    losses = (
        two_hot.loss(logits, VALUES.double()),
        two_hot_cross_entropy(logits, VALUES.double(), two_hot.bins),
    )
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logits) for loss in losses))


def test_the_last_bin_is_where_it_is_said_to_be():
    two_hot = SymexpTwoHot(5, largest_symlog=2.0).double()
    torch.testing.assert_close(symlog(two_hot.bins), torch.linspace(-2.0, 2.0, 5).double(), rtol=1e-6, atol=0)


def test_equal_logits_say_exactly_zero():
    """In float32, where bins of 5e8 are 32 apart."""
    assert torch.equal(SymexpTwoHot(255).value(torch.zeros(4, 255)), torch.zeros(4))
