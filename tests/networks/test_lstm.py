"""Long short-term memory: its arithmetic and its gradient are those of torch's, through resets."""

from itertools import pairwise

import pytest
import torch

from pi_incubator.layers.lstm_scan import lstm_scan

T, N, D, H = 12, 5, 4, 6


def pieces(begins):
    """The stretches of one sequence `[T]` between resets."""
    starts = sorted({0, *begins.nonzero().flatten().tolist(), len(begins)})
    return list(pairwise(starts))


def torchs(lstm, observation, hidden, cell, begins):
    """Hidden states and last cells of every stretch, by `torch.nn.LSTM`."""
    states, cells = [], []
    for world in range(N):
        rows = []
        for start, end in pieces(begins[:, world]):
            zero = torch.zeros_like(hidden[:1])
            first = (zero, zero) if begins[start, world] else (hidden[world][None], cell[world][None])
            row, (_, last) = lstm(observation[start:end, world], first)
            rows.append(row)
        states.append(torch.cat(rows))
        cells.append(last[0])
    return torch.stack(states, 1), torch.stack(cells)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0], ids=["no resets", "some", "at every step"])
def test_the_scan_and_its_gradient_are_those_of_torchs_lstm(share):
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(D, H).double()
    observation, weights = torch.randn(T, N, D).double(), torch.randn(T, N, H).double()
    begins = torch.rand(T, N) < share
    hidden, cell = (torch.randn(N, H).double().requires_grad_() for _ in range(2))
    leaves = [hidden, cell, *lstm.parameters()]
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    inputs = torch.nn.functional.linear(observation, lstm.weight_ih_l0, bias)
    states, cells = lstm_scan(inputs, hidden, cell, begins, lstm.weight_hh_l0)
    expected, last = torchs(lstm, observation, hidden, cell, begins)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(cells[-1], last, rtol=0, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad((value * weights).sum() + ends.sum(), leaves, materialize_grads=True)
        for value, ends in ((states, cells[-1]), (expected, last))
    )
    for found, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("steps", "sequences"), [(2, 3), (3, 2)])
def test_starts_of_other_steps_or_sequences_are_refused(steps, sequences):
    begins, state = torch.zeros(steps, sequences, dtype=torch.bool), torch.zeros(sequences, 2)
    with pytest.raises(ValueError, match=r"do not belong to inputs \[3, 3, 8\]"):
        lstm_scan(torch.zeros(3, 3, 8), state, state, begins, torch.zeros(8, 2))


def test_the_scan_is_a_proper_operator():
    """What torch.compile takes for granted of it: shapes, strides, no hidden aliases, its gradient."""
    random = torch.Generator().manual_seed(0)
    shapes = ((T, N, 4 * H), (N, H), (N, H), (4 * H, H))
    leaves = [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]
    begins = torch.rand(T, N, generator=random) < 0.2
    torch.library.opcheck(torch.ops.pi_incubator.lstm_scan, (*leaves[:3], begins, leaves[3]))
