"""The projection of values to bins, against the loops of its paper."""

import math

import torch

from pi_incubator.training.categorical import _by_pairs, _by_scattering, make_bins, project


def test_the_projection_is_that_of_algorithm_1():
    """Bellemare et al. 2017: each value shares its probability between the bins beside it."""
    torch.manual_seed(0)
    bins = make_bins(11, 5.0, torch.device("cpu")).double()
    probability = torch.randn(7, 11, dtype=torch.float64).softmax(-1)
    value = 4.0 * torch.randn(7, 11, dtype=torch.float64)
    expected = torch.zeros(7, 11, dtype=torch.float64)
    for row in range(7):
        for j in range(11):
            place = (min(5.0, max(-5.0, float(value[row, j]))) + 5.0) / 1.0
            low, high = math.floor(place), math.ceil(place)
            if low == high:
                expected[row, low] += probability[row, j]
                continue
            expected[row, low] += probability[row, j] * (high - place)
            expected[row, high] += probability[row, j] * (place - low)
    torch.testing.assert_close(project(probability, value, bins), expected)


def test_the_projection_keeps_total_and_mean_of_what_is_inside():
    torch.manual_seed(0)
    bins = make_bins(101, 5.0, torch.device("cpu"))
    probability = torch.randn(3, 2, 101).softmax(-1)
    value = 0.3 + 0.9 * bins.expand(3, 2, 101)
    projected = project(probability, value, bins)
    torch.testing.assert_close(projected.sum(-1), torch.ones(3, 2))
    torch.testing.assert_close((projected * bins).sum(-1), (probability * value).sum(-1), rtol=0, atol=1e-5)


def test_values_outside_go_to_the_last_bins():
    bins = make_bins(3, 1.0, torch.device("cpu"))
    probability = torch.tensor([[0.25, 0.5, 0.25]])
    projected = project(probability, torch.tensor([[-9.0, 0.0, 9.0]]), bins)
    torch.testing.assert_close(projected, probability)
    assert bins.tolist() == [-1.0, 0.0, 1.0]


def test_the_way_of_cuda_and_that_of_a_cpu_are_the_same():
    """Also at the edges, and where a value lies on a bin."""
    torch.manual_seed(0)
    probability = torch.randn(5, 3, 11, dtype=torch.float64).softmax(-1)
    place = 10.0 * torch.rand(5, 3, 11, dtype=torch.float64)
    place[0], place[1], place[2] = 0.0, 10.0, torch.arange(11)
    ours = _by_scattering(probability, place)
    torch.testing.assert_close(ours, _by_pairs(probability, place))
    torch.testing.assert_close(ours.sum(-1), torch.ones(5, 3, dtype=torch.float64))
