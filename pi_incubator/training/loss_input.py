"""A minibatch of the replay buffer under the names that TorchRL's off-policy losses read.

Letters: B samples, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.policies.bounded import BoundedPolicy
from pi_incubator.policies.categorical import CategoricalPolicy

ACTOR, CRITIC = "actor_features", "critic_features"
"""What the policy's head and the critics' heads read."""


def loss_input(
    samples: TensorDict,
    policy: BoundedPolicy | CategoricalPolicy,
    features: Mapping[str, Tensor],
    next_features: Mapping[str, Tensor],
    reward_scale: float,
    noise: tuple[Tensor, Tensor],
) -> TensorDict:
    """Features, actions as losses read them, scaled rewards, and the rest as it is.

    Args:
        samples: of batch `[B]`, see `training.features.samples_of`.
        policy: whose actions are meant.
        features: `ACTOR` and `CRITIC` before the steps, each `[B, F]`, where the loss reads them.
        next_features: the same after the steps.
        reward_scale: factor on the reward.
        noise: `[B, A]` of this step, and of the next one.
    """
    terminated, size = samples["terminated"], samples.batch_size
    following = {
        **next_features,
        "noise": noise[1],
        "reward": (samples["reward"] * reward_scale).unsqueeze(-1),
        "terminated": terminated.unsqueeze(-1),
        "done": (terminated | samples["truncated"]).unsqueeze(-1),
    }
    now = {
        **features,
        "action": policy.learned_action(samples["action"]),
        "noise": noise[0],
        "valid": samples["valid"],
        "steps_to_next_obs": samples["num_steps"].unsqueeze(-1),
    }
    if "weight" in samples.keys():  # noqa: SIM118 - of a TensorDict
        now["priority_weight"] = samples["weight"]
    return TensorDict({**now, "next": TensorDict(following, size)}, size)


def mean_weight(samples: TensorDict) -> Tensor | float:
    """The factor on a loss of TorchRL that makes of its weighted mean the mean of weighted losses.

    TorchRL divides by the sum of the weights, Schaul et al. 2016 (algorithm 1) by the number of samples. So
    the means of several ranks have one mean. 1 where the steps have no weights.
    """
    if "weight" not in samples.keys():  # noqa: SIM118 - of a TensorDict
        return 1.0
    valid = samples["valid"]
    return torch.where(valid, samples["weight"], 0.0).sum() / valid.sum().clamp_min(1)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of `values` `[B]` where `valid` `[B]` is true; 0 where it is nowhere."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp_min(1)
