"""The policy's step comes with every n-th minibatch, also where steps are captured and replayed."""

import pytest
import torch
from tensordict import TensorDict

from pi_incubator.training.captured import NUM_WARM_UP, CapturedStep
from pi_incubator.training.delayed import DelayedActor
from pi_incubator.training.step import Phase

CPU = torch.device("cpu")


class Sums:
    """Two sums of the minibatches that the policy and the critics have seen."""

    def __init__(self, captures):
        self.actor, self.critics = torch.zeros(1), torch.zeros(1)
        none = torch.tensor(True)

        def make(phases):
            (phase,) = phases

            def step(minibatch):
                means, report = phase.gradients(minibatch)
                phase.apply(list(means), none)
                return report

            return CapturedStep(step, capture=lambda function: function) if captures else step

        self.steps = DelayedActor(self.phase(self.actor), self.phase(self.critics), 2, 1, make, CPU)

    @staticmethod
    def phase(total):
        return Phase(
            lambda minibatch: ([minibatch["x"].sum().view(1)], minibatch["x"].max().view(1)),
            lambda means, sound: total.add_(means[0]),
        )


def minibatch(number):
    return TensorDict({"x": torch.tensor([float(number), 0.0])}, batch_size=[2])


@pytest.mark.parametrize("captures", [False, True])
def test_the_policy_moves_at_every_second_minibatch(captures):
    sums, num_steps = Sums(captures), 2 * NUM_WARM_UP + 6
    reports = [sums.steps(minibatch(number)).tolist() for number in range(num_steps)]
    assert sums.critics == sum(range(num_steps))
    assert sums.actor == sum(range(0, num_steps, 2))
    assert reports == [[number, number - number % 2] for number in range(num_steps)]


def test_it_continues_at_the_minibatch_that_it_was_saved_at():
    first, second = Sums(captures=False), Sums(captures=False)
    first.steps(minibatch(1))
    second.steps.load_state_dict(first.steps.state_dict())
    assert second.steps(minibatch(2)).tolist() == [2.0, 1.0]
    assert second.actor == 0.0
