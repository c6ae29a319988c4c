"""TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860, eq. 5), on the critics of TD3.

TorchRL's `TD3BCLoss` has the same loss of the policy, but counts steps that are not valid.

Letters: B samples of a minibatch, A actions.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.algorithms.td3 import TD3
from pi_incubator.config.algorithms.td3_bc import TD3BCSettings
from pi_incubator.layers.critic import values_of
from pi_incubator.registry import algorithm
from pi_incubator.training.features import samples_of
from pi_incubator.training.loss_input import CRITIC, masked_mean
from pi_incubator.training.offline import Offline

SMALLEST_VALUE = 1e-6
"""Lower limit of the mean absolute value by which the policy's loss divides the critics' values."""


@algorithm("td3_bc")
class TD3BC(Offline[TD3BCSettings], TD3):
    """TD3 whose policy also learns the recorded actions, by their squared errors."""

    def _actor_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        samples = samples_of(minibatch)
        valid, recorded = samples["valid"], self.policy.to_unit(samples["action"])
        with self.autocast():
            action = self.policy.unit_action(self.actor_features.now(minibatch))
            with torch.no_grad():
                features = self.critic_features.now(minibatch)
            weights = self.loss.qvalue_network_params
            value = values_of(self.loss.qvalue_network, weights, CRITIC, features, action)[0]
            with torch.no_grad():
                size = masked_mean(value.abs(), valid).clamp_min(SMALLEST_VALUE)
            cloning = masked_mean((action - recorded).square().mean(-1), valid)
            loss = cloning - self.settings.value_weight / size * masked_mean(value, valid)
        return torch.autograd.grad(loss, self.actor_weights), loss.detach().view(1)
