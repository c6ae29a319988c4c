"""A compiled function does what it did, and compiling it leaves no trace."""

import pytest
import torch

from envs_gpu.compiled import compiled


class Counter:
    def __init__(self):
        self.weight = torch.ones(3)
        self.calls = torch.zeros((), dtype=torch.int64)

    def step(self, x):
        self.calls += 1
        return (x * self.weight).sum()


def test_a_method_sees_what_changes_in_place():
    counter, other = Counter(), Counter()
    step, others = compiled(counter.step), compiled(other.step)
    assert step(torch.ones(3)) == 3
    counter.weight.mul_(2)
    assert step(torch.ones(3)) == 6
    assert others(torch.ones(3)) == 3
    assert (counter.calls, other.calls) == (2, 1)


def test_compiling_leaves_random_numbers_as_they_were():
    def act(x):
        return torch.nn.functional.linear(x, weight).tanh() @ weight

    weight = torch.randn(5, 4)
    fast, x = compiled(act), torch.randn(3, 4)
    before = torch.get_rng_state()
    torch.testing.assert_close(fast(x), act(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_shape_is_an_error_and_no_wrong_answer():
    fast = compiled(lambda x: x * 2)
    fast(torch.ones(3))
    with pytest.raises((AssertionError, RuntimeError)):
        fast(torch.ones(4))
