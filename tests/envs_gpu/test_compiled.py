"""A compiled function does what it did, and compiling it leaves no trace."""

from types import SimpleNamespace

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


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("no memory")])
def test_a_machine_that_cannot_compile_runs_the_function_as_it_is(monkeypatch, caplog, error):
    def fail(*arguments, **options):
        raise RuntimeError("inductor") from error

    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: SimpleNamespace(aot_compile=fail))
    double = compiled(lambda x: x * 2)
    assert double(torch.ones(())) == double(torch.ones(())) == 2
    (record,) = [record for record in caplog.records if record.name == "envs_gpu.compiled"]
    assert "runs uncompiled, because this machine cannot compile it" in record.getMessage()
    assert str(error) in record.getMessage()


def test_a_function_that_cannot_be_compiled_is_an_error():
    with pytest.raises(Exception, match="data-dependent"):
        compiled(lambda x: x * 2 if x.sum().item() > 0 else x)(torch.ones(2))
