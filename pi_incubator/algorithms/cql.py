"""Conservative Q-learning, CQL(H) (Kumar et al. 2020, arXiv 2006.04779, eq. 4), on soft actor-critic.

The sum over all actions of eq. 4 is estimated by importance sampling with uniform actions and actions of the
policy in this state and in the next one (appendix F). TorchRL's `CQLLoss` is not used: it takes the logarithm
of the sum over three actions at a time, evaluates actions of the next state in the next state, and draws its
random numbers from torch's global generator.

Letters: B samples of a minibatch, M actions of one kind, A actions, F features.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import VecEnv
from pi_incubator.algorithms.sac import SAC
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.cql import CQLSettings
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.layers.critic import values_of
from pi_incubator.policies.squashed_gaussian import SquashedGaussian, SquashedGaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.features import samples_of
from pi_incubator.training.loss_input import CRITIC, masked_mean
from pi_incubator.training.offline import Offline

CANDIDATES = "candidate_noise"
"""Of a minibatch: standard normal noise `[B, 3, M, A]`."""


@algorithm("cql")
class CQL(Offline[CQLSettings], SAC):
    """SAC with a term that lowers the values of all actions and raises those of the recorded ones."""

    policy: SquashedGaussianPolicy
    report_names = (SAC.report_names[0], "loss/conservative", *SAC.report_names[1:])

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        seed = cfg.experiment.seed
        self.candidate_noise = ShardedRandom(seed, "candidate actions", self.shards, env.device)

    def parts(self) -> dict[str, Part]:
        return super().parts() | {"candidate_noise": Part(self.candidate_noise, per_rank=True)}

    def minibatch(self, size: int) -> TensorDict:
        """With noise for the actions that the conservative term compares."""
        minibatch = super().minibatch(size)
        shape = (size, 3, self.settings.num_actions, self.env.spec.action_dim)
        noise = torch.empty(1, *shape, device=self.env.device)
        self.candidate_noise.normal_(noise)
        minibatch[CANDIDATES] = noise[0]
        return minibatch

    def _critic_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        soft, report = super()._critic_gradients(minibatch)
        with self.autocast():
            loss = self.conservative_loss(minibatch)
        gradients = torch.autograd.grad(self.settings.conservative_weight * loss, self.critic_weights)
        total = tuple(one + other for one, other in zip(soft, gradients, strict=True))
        return total, torch.cat((report, loss.detach().view(1)))

    def conservative_loss(self, minibatch: TensorDict) -> Tensor:
        """How far the critics' values of all actions exceed those of the recorded ones, summed over both
        critics.
        """
        samples, features = samples_of(minibatch), self.critic_features.now(minibatch)
        actions, log_density = self._candidates(minibatch)
        num_candidates = actions.shape[1]
        repeated = features.unsqueeze(1).expand(-1, num_candidates, -1)  # [B, 3 M, F]
        values = self._values(repeated.flatten(0, 1), actions.flatten(0, 1))
        values = values.unflatten(1, (-1, num_candidates))  # [2, B, 3 M]
        recorded = self._values(features, self.policy.to_unit(samples["action"]))  # [2, B]
        of_all = (values - log_density).logsumexp(-1) - math.log(num_candidates)
        return masked_mean((of_all - recorded).sum(0), samples["valid"])

    def _values(self, features: Tensor, action: Tensor) -> Tensor:
        """Of both critics, `[2, B]`."""
        weights = self.loss.qvalue_network_params
        return values_of(self.loss.qvalue_network, weights, CRITIC, features, action)

    @torch.no_grad()
    def _candidates(self, minibatch: TensorDict) -> tuple[Tensor, Tensor]:
        """Sampled actions `[B, 3 M, A]` in (-1, 1), and their log-densities `[B, 3 M]`."""
        uniform, now, following = minibatch[CANDIDATES].unbind(1)  # each [B, M, A]
        of_policy = [
            self._sampled(self.actor_features.now(minibatch), now),
            self._sampled(self.actor_features.following(minibatch), following),
        ]
        # The distribution function of the normal distribution turns normal noise into uniform numbers.
        spread = torch.special.ndtr(uniform) * 2.0 - 1.0
        density = spread.new_full(spread.shape[:-1], -spread.shape[-1] * math.log(2.0))
        actions, densities = zip((spread, density), *of_policy, strict=True)
        return torch.cat(actions, 1), torch.cat(densities, 1)

    def _sampled(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions of the policy `[B, M, A]` and their log-densities `[B, M]`, with `noise` `[B, M, A]`."""
        loc, scale = (moment.unsqueeze(1) for moment in self.policy.before_tanh(features))
        return SquashedGaussian(loc, scale, noise).rsample_and_log_prob()
