"""CrossQ: soft actor-critic without target networks (Bhatt et al. 2024, arXiv 1902.05605, algorithm 1).

Batch normalization in the critics keeps learning stable without them. The paper uses batch renormalization
(Ioffe 2017); here, batches are normalized by the moments of the minibatch.

Letters: K shards of a minibatch, B samples of a shard, C critics.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.config.algorithms.crossq import CrossQSettings
from pi_incubator.registry import algorithm
from pi_incubator.training.batch_norm_sac import BatchNormSAC


@algorithm("crossq")
class CrossQ(BatchNormSAC[CrossQSettings]):
    """Critics evaluate this step and the next one in a single batch, and there are no target networks."""

    num_outputs = 1

    @property
    def target_entropy(self) -> float:
        return self.settings.target_entropy * self.env.spec.action_dim

    def value_of(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1)

    def critic_loss(self, minibatch: TensorDict) -> tuple[Tensor, list[Tensor]]:
        settings, valid = self.settings, minibatch["valid"]
        with torch.no_grad():
            inputs, log_prob = self.both_steps(minibatch)
        moments: list[Tensor] = []
        values, following = self.value_of(self.critics(inputs, moments)).chunk(2, -1)  # [C, K, B]
        soft = (following.detach().amin(0) - self.log_temperature.exp() * log_prob).flatten()
        discount = settings.gamma ** minibatch["num_steps"] * ~minibatch["terminated"]
        target = settings.reward_scale * minibatch["reward"] + discount * soft
        error = values.flatten(1) - target  # [C, K B]
        self.surprise.copy_(error.detach().abs().amax(0))
        weighted = minibatch.get("weight", 1.0) * error.square().sum(0)
        return torch.where(valid, weighted, 0.0).sum() / valid.sum().clamp_min(1), moments
