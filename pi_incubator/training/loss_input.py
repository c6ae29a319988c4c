"""A minibatch of the replay buffer under the names that TorchRL's off-policy losses read."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.data.replay.replay import NEXT, OBS
from pi_incubator.policies.bounded import BoundedPolicy


def loss_input(
    minibatch: TensorDict,
    policy: BoundedPolicy,
    groups: Iterable[str],
    reward_scale: float,
    noise: tuple[Tensor, Tensor],
) -> TensorDict:
    """Observations normalized, actions in (-1, 1), rewards scaled.

    Args:
        minibatch: of batch `[B]`, as the replay buffer gives it.
        policy: whose normalizer and action limits are meant.
        groups: the observation groups that are read.
        reward_scale: factor on the reward.
        noise: `[B, A]` of this step, and of the next one.
    """
    normalizer, terminated, groups = policy.normalizer, minibatch["terminated"], tuple(groups)
    following = {group: normalizer[group](minibatch[NEXT + group]) for group in groups}
    following |= {
        "noise": noise[1],
        "reward": (minibatch["reward"] * reward_scale).unsqueeze(-1),
        "terminated": terminated.unsqueeze(-1),
        "done": (terminated | minibatch["truncated"]).unsqueeze(-1),
    }
    now = {group: normalizer[group](minibatch[OBS + group]) for group in groups}
    now |= {
        "action": policy.to_unit(minibatch["action"]),
        "noise": noise[0],
        "valid": minibatch["valid"],
        "steps_to_next_obs": minibatch["num_steps"].unsqueeze(-1),
    }
    if "weight" in minibatch.keys():  # noqa: SIM118 - of a TensorDict
        now["priority_weight"] = minibatch["weight"]
    size = minibatch.batch_size
    return TensorDict({**now, "next": TensorDict(following, size)}, size)


def mean_weight(minibatch: TensorDict) -> Tensor | float:
    """The factor on a loss of TorchRL that makes of its weighted mean the mean of weighted losses.

    TorchRL divides by the sum of the weights, Schaul et al. 2016 (algorithm 1) by the number of samples. So
    the means of several ranks have one mean. 1 where the steps have no weights.
    """
    if "weight" not in minibatch.keys():  # noqa: SIM118 - of a TensorDict
        return 1.0
    valid = minibatch["valid"]
    return torch.where(valid, minibatch["weight"], 0.0).sum() / valid.sum().clamp_min(1)
