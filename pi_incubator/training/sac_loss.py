"""TorchRL's losses of the soft actor-critic, for continuous and for discrete actions.

Letters: B samples of a minibatch, A actions, K choices, F features, C critics.
"""

from __future__ import annotations

import math
from typing import TypeVar

from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import DiscreteSACLoss, SACLoss

from pi_incubator.config.algorithms.sac import SACSettings
from pi_incubator.layers.critic import NUM_CRITICS, make_critics
from pi_incubator.layers.network import Network
from pi_incubator.policies.categorical import CategoricalPolicy, Choices
from pi_incubator.policies.squashed_gaussian import SquashedGaussian, SquashedGaussianPolicy
from pi_incubator.training.loss_input import ACTOR, CRITIC

Loss = TypeVar("Loss", SACLoss, DiscreteSACLoss)


def continuous_loss(
    settings: SACSettings, network: Network, policy: SquashedGaussianPolicy, num_features: int
) -> SACLoss:
    """Critics of features `[B, F]` and an action (Haarnoja et al. 2018b)."""
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(_Distribution(policy), in_keys=[ACTOR], out_keys=["loc", "scale"]),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale", "noise"],
            out_keys=["action"],
            distribution_class=SquashedGaussian,
            return_log_prob=True,
        ),
    )
    loss = SACLoss(
        actor,
        make_critics(network, num_features, CRITIC, NUM_CRITICS),
        loss_function="l2",
        alpha_init=settings.initial_temperature,
        target_entropy=settings.target_entropy * network.spec.action_dim,
    )
    return _prepared(loss, settings)


def discrete_loss(
    settings: SACSettings, network: Network, policy: CategoricalPolicy, num_features: int
) -> DiscreteSACLoss:
    """Critics that give the values `[B, K]` of all choices (Christodoulou 2019, arXiv 1910.07207)."""
    num_choices = network.spec.num_choices
    assert num_choices is not None
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(policy.head, in_keys=[ACTOR], out_keys=["logits"]),
        ProbabilisticTensorDictModule(in_keys=["logits"], out_keys=["action"], distribution_class=Choices),
    )
    heads = (network.head(num_features, num_choices, output_gain=1.0) for _ in range(NUM_CRITICS))
    loss = DiscreteSACLoss(
        actor,
        [TensorDictModule(head, in_keys=[CRITIC], out_keys=["action_value"]) for head in heads],
        action_space="categorical",
        num_qvalue_nets=NUM_CRITICS,
        loss_function="l2",
        alpha_init=settings.initial_temperature,
        target_entropy=settings.entropy_share * math.log(num_choices),
    )
    return _prepared(loss, settings)


def _prepared(loss: Loss, settings: SACSettings) -> Loss:
    loss.make_value_estimator(gamma=settings.gamma)
    loss.loss_mask_key = "valid"
    loss.target_entropy  # noqa: B018 - becomes a buffer at the first access, which must not be compiled
    return loss


class _Distribution(nn.Module):
    """Features `[B, F]` -> mean and standard deviation before tanh, each `[B, A]`."""

    def __init__(self, policy: SquashedGaussianPolicy) -> None:
        super().__init__()
        self.head = policy.head
        self._policy = [policy]  # in a list, so that the loss does not own normalizer and encoder

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        (policy,) = self._policy
        return policy.before_tanh(features)
