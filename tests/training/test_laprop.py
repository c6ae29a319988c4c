"""LaProp and its clipping, against the formulas of their papers."""

import math

import torch

from pi_incubator.training.laprop import LEAST_NORM, LaProp, clip_by_weights


def by_algorithm_1(weight, gradients, lr, beta1, beta2, eps):
    """Ziyin et al. 2020, algorithm 1, for one number."""
    mean = square = 0.0
    for step, gradient in enumerate(gradients, 1):
        square = beta2 * square + (1.0 - beta2) * gradient**2
        mean = beta1 * mean + (1.0 - beta1) * gradient / (math.sqrt(square / (1.0 - beta2**step)) + eps)
        weight -= lr * mean / (1.0 - beta1**step)
    return weight


def test_steps_are_those_of_algorithm_1():
    """Also after a gradient that is a thousand times larger than those before it."""
    weights = [torch.tensor([1.0, -2.0]), torch.tensor([[0.5]])]
    expected = [[float(value) for value in weight.flatten()] for weight in weights]
    laprop = LaProp(weights, torch.tensor(0.1), eps=1e-8)
    rounds = [[torch.tensor([f, -0.1 * f]), torch.tensor([[2.0 + f]])] for f in (1.0, -0.3, 1000.0, 0.2, 0.1)]
    for gradients in rounds:
        laprop.step(gradients, torch.tensor(True))
    for index, weight in enumerate(weights):
        for place, found in enumerate(weight.flatten().tolist()):
            history = [float(gradients[index].flatten()[place]) for gradients in rounds]
            reference = by_algorithm_1(expected[index][place], history, 0.1, 0.9, 0.999, 1e-8)
            assert math.isclose(found, reference, rel_tol=1e-4)


def test_a_step_that_is_not_sound_changes_nothing():
    weight = torch.tensor([1.0, 2.0])
    laprop = LaProp([weight], torch.tensor(0.1))
    laprop.step([torch.ones(2)], torch.tensor(True))
    before = {name: value.clone() for name, value in laprop.state_dict().items()} | {"weight": weight.clone()}
    laprop.step([torch.full((2,), torch.nan)], torch.tensor(False))
    after = laprop.state_dict() | {"weight": weight}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_gradients_are_clipped_to_a_share_of_their_weights():
    """Tensor by tensor; a weight of zero can still move, and a gradient of zero stays one."""
    weights = [torch.tensor([3.0, 4.0]), torch.zeros(2), torch.tensor([3.0, 4.0]), torch.ones(2)]
    gradients = [
        torch.tensor([60.0, 80.0]),
        torch.tensor([0.0, 5.0]),
        torch.tensor([0.3, 0.4]),
        torch.zeros(2),
    ]
    clipped = clip_by_weights(gradients, weights, 0.3)
    expected = [torch.tensor([0.9, 1.2]), torch.tensor([0.0, 0.3 * LEAST_NORM]), gradients[2], gradients[3]]
    for ours, theirs in zip(clipped, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
