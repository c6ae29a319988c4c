"""The minimal gated recurrent unit against its published recurrence."""

import pytest
import torch

from pi_incubator.layers.gates import chrono_bias
from pi_incubator.layers.linear_scan import linear_scan
from pi_incubator.layers.mingru import MinGRULayer

T, N, H = 9, 3, 4


def test_a_layer_is_the_papers_unit_in_a_highway():
    """Feng et al. 2024, section 3.1: h[t] = (1 - z) h[t - 1] + z n, both of the input alone."""
    torch.manual_seed(0)
    layer = MinGRULayer(H, dependency_steps=8).double()
    x, hidden = torch.randn(T, N, H).double(), torch.randn(N, H).double()
    with torch.no_grad():
        y, states = layer.sequence(x, hidden, torch.zeros(T, N, dtype=torch.bool))
        of_z, of_p, of_n = (x @ weight.t() for weight in layer.gates.weight.split(H))
        bias_z, bias_p, bias_n = layer.gates.bias.split(H)
    for t in range(T):
        z, p = torch.sigmoid(of_z[t] + bias_z), torch.sigmoid(of_p[t] + bias_p)
        hidden = (1 - z) * hidden + z * (of_n[t] + bias_n)
        torch.testing.assert_close(states[t], hidden)
        torch.testing.assert_close(y[t], p * hidden + (1 - p) * x[t])


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scan_and_its_gradient_are_those_of_a_loop(dtype, share):
    random = torch.Generator().manual_seed(0)
    decay, drive = (torch.rand(T, N, H, generator=random, dtype=dtype).requires_grad_() for _ in range(2))
    state = torch.randn(N, H, generator=random, dtype=dtype).requires_grad_()
    weights = torch.randn(T, N, H, generator=random, dtype=dtype)
    starts = torch.rand(T, N, generator=random) < share
    rows, hidden = [], state
    for t in range(T):
        hidden = torch.where(starts[t].unsqueeze(-1), 0.0, hidden)
        hidden = decay[t] * hidden + drive[t]
        rows.append(hidden)
    expected = torch.stack(rows)
    found = linear_scan(decay, drive, state, starts)
    torch.testing.assert_close(found, expected)
    leaves = [decay, drive, state]
    ours, theirs = (torch.autograd.grad((value * weights).sum(), leaves) for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_gates_begin_with_memories_up_to_the_longest():
    """What is kept with the weight sigmoid(bias) has faded to about a third after exp(bias) steps."""
    torch.manual_seed(0)
    bias = chrono_bias(1000, 64)
    steps = bias.exp()
    assert 1.0 <= steps.min() < 3.0
    assert 60.0 < steps.max() <= 63.0
    kept = bias.sigmoid() ** steps
    assert ((kept > 0.3) & (kept <= 0.5)).all()
