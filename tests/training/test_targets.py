"""Target networks follow the learned weights, unless an update was skipped."""

import torch

from pi_incubator.training.targets import follow


def test_targets_move_by_a_share_of_the_way():
    targets, weights = [torch.zeros(2), torch.full((3,), 4.0)], [torch.ones(2), torch.full((3,), 2.0)]
    follow(targets, weights, 0.25, torch.tensor(True))
    assert targets[0].tolist() == [0.25, 0.25]
    assert targets[1].tolist() == [3.5, 3.5, 3.5]
    follow(targets, weights, 0.25, torch.tensor(False))
    assert targets[0].tolist() == [0.25, 0.25]
