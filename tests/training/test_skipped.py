"""An update whose loss or gradient is not finite changes not a bit, is counted, and too many end the run."""

import pytest
import torch

from pi_incubator.errors import DivergedError
from pi_incubator.training.adam import Adam
from pi_incubator.training.compiled import compiled_step
from pi_incubator.training.muon import Muon
from pi_incubator.training.skipped import SkippedUpdates, is_sound
from tests.learning import assert_same_tensors


def snapshot(weights, optimizer):
    state = {f"weight.{index}": weight for index, weight in enumerate(weights)} | optimizer.state_dict()
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize("kind", [Adam, Muon])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30], ids=["nan", "inf", "a norm that overflows"])
def test_weights_and_moments_are_the_same_bits_after_a_bad_gradient(compiled, bad, kind):
    torch.manual_seed(0)
    weights = [torch.randn(3, 2), torch.randn(2)]
    optimizer, skipped = kind(weights, torch.tensor(1e-2)), SkippedUpdates(torch.device("cpu"))

    def take(first, second):
        sound = is_sound([first, second], first.new_zeros(1))
        optimizer.step([first, second], sound)
        skipped.note(sound)
        return sound

    step = compiled_step(take) if compiled else take
    good = torch.randn(3, 2), torch.randn(2)
    for _ in range(2):
        assert step(*good)
    before = snapshot(weights, optimizer)
    spoiled = good[0].clone()
    spoiled[1, 1] = bad
    assert not step(spoiled, good[1])
    assert_same_tensors(snapshot(weights, optimizer), before)
    assert (int(skipped.total), int(skipped.in_a_row)) == (1, 1)
    assert step(*good)
    after = snapshot(weights, optimizer)
    assert not any(torch.equal(value, before[name]) for name, value in after.items())
    assert (int(skipped.total), int(skipped.in_a_row)) == (1, 0)


def test_a_loss_counts_too():
    gradients = [torch.zeros(2)]
    assert is_sound(gradients, torch.tensor([0.0, 1.0]))
    assert not is_sound(gradients, torch.tensor([0.0, torch.inf]))


def test_too_many_in_a_row_stop_the_run():
    skipped = SkippedUpdates(torch.device("cpu"))
    for sound in (False, False, True, False, False):
        skipped.note(torch.tensor(sound))
    skipped.check(limit=3)
    assert [skipped.pop(), skipped.pop()] == [4, 0]
    skipped.note(torch.tensor(False))
    with pytest.raises(DivergedError, match=r"the last 3 updates were skipped.*max_skipped_updates = 3"):
        skipped.check(limit=3)
