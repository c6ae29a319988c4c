"""FlashSAC: soft actor-critic with categorical critics, and networks of fixed norm.

Kim et al. 2026, arXiv 2604.04539.

Letters: K shards of a minibatch, B samples of a shard, A actions, C critics, Z bins of a value.
"""

from __future__ import annotations

import copy
import math

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import EnvSpec, StepResult, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.flash_sac import FlashSACSettings
from pi_incubator.distributed import Distributed
from pi_incubator.networks import make_network
from pi_incubator.policies.squashed_gaussian import SquashedGaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.batch_norm_sac import BatchNormSAC
from pi_incubator.training.categorical import make_bins, project
from pi_incubator.training.repeated_noise import RepeatedNoise
from pi_incubator.training.reward_scale import RewardScale
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.targets import follow

LOG_STD_RANGE = (-10.0, 2.0)
"""Limits of the logarithm of the Gaussian's standard deviation, before tanh."""


@algorithm("flash_sac")
class FlashSAC(BatchNormSAC[FlashSACSettings]):
    """Critics give probabilities of values; exploration noise lasts for several steps."""

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings, device, num_actions = self.settings, env.device, env.spec.action_dim
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.bins = make_bins(settings.num_bins, settings.largest_value, device)
        self.reward_scale = RewardScale(env.num_envs, settings.gamma, settings.largest_value, device)
        self.repeated = RepeatedNoise(env.num_envs, num_actions, settings.noise_repeat, device)

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> SquashedGaussianPolicy:
        network = make_network(cfg.network, spec)
        return SquashedGaussianPolicy(cfg.network, network, spec, LOG_STD_RANGE).to(spec.device)

    @property
    def num_outputs(self) -> int:
        return self.settings.num_bins

    @property
    def target_entropy(self) -> float:
        """The entropy of a Gaussian with standard deviation `target_std` in each action."""
        of_one = math.log(math.sqrt(2 * math.pi * math.e) * self.settings.target_std)
        return self.env.spec.action_dim * of_one

    def value_of(self, outputs: Tensor) -> Tensor:
        return (outputs.softmax(-1) * self.bins).sum(-1)

    def step(self, minibatch: TensorDict) -> Tensor:
        self.lr.fill_(self._lr_now())
        return super().step(minibatch)

    def commit(self) -> None:
        super().commit()
        self.reward_scale.commit(self.distributed)

    def make_noise(self) -> Tensor:
        length = torch.empty(1, self.env.num_envs, device=self.env.device)
        self.noise.normal_(length)
        return self.repeated.next(super().make_noise(), length[0])

    def observe(self, result: StepResult) -> None:
        self.reward_scale.observe(result)

    def parts(self) -> dict[str, Part]:
        return super().parts() | {
            "targets": Part(self.targets, is_learned=True),
            "reward_scale": Part(self.reward_scale, is_learned=True),  # critics learn rewards divided by it
            "returns": Part(NamedTensors(returns=self.reward_scale.returns), per_rank=True),
            "repeated_noise": Part(self.repeated, per_rank=True),
        }

    def critic_loss(self, minibatch: TensorDict) -> tuple[Tensor, list[Tensor]]:
        valid = minibatch["valid"]
        with torch.no_grad():
            inputs, log_prob = self.both_steps(minibatch)
            target = self._target(self.targets(inputs, []).chunk(2, -2)[1], log_prob, minibatch)
        moments: list[Tensor] = []
        log_probability = self.critics(inputs, moments).chunk(2, -2)[0].log_softmax(-1)  # [C, K, B, Z]
        cross_entropy = -(target * log_probability).sum(-1).mean(0).flatten()
        # The KL divergence from the target, as in Rainbow (Hessel et al. 2018).
        self.surprise.copy_(cross_entropy.detach() - torch.special.entr(target).sum(-1).flatten())
        weight = minibatch.get("weight", 1.0)
        return torch.where(valid, weight * cross_entropy, 0.0).sum() / valid.sum().clamp_min(1), moments

    def _target(self, logits: Tensor, log_prob: Tensor, minibatch: TensorDict) -> Tensor:
        """Target probabilities `[K, B, Z]` of the bins, from the target critics' logits `[C, K, B, Z]` of the
        next step.

        Of the two critics, the one with the smaller expected value counts (Fujimoto et al. 2018, eq. 10).
        """
        first, second = logits.softmax(-1).unbind()
        expects_less = (first * self.bins).sum(-1) <= (second * self.bins).sum(-1)  # [K, B]
        probability = torch.where(expects_less.unsqueeze(-1), first, second)
        bonus = self.log_temperature.exp() * log_prob
        reward = self.in_shards((minibatch["reward"] / self.reward_scale.scale).unsqueeze(-1))
        goes_on = self.in_shards((~minibatch["terminated"]).to(reward).unsqueeze(-1))
        discount = self.in_shards((self.settings.gamma ** minibatch["num_steps"]).unsqueeze(-1))
        value = reward + discount * goes_on * (self.bins - bonus.unsqueeze(-1))
        return project(probability, value, self.bins)

    def _apply_to_critics(self, means: list[Tensor], sound: Tensor) -> None:
        super()._apply_to_critics(means, sound)
        follow(self.targets.parameters(), self.critic_weights, self.settings.tau, sound)

    def _lr_now(self) -> float:
        """The learning rate, which falls along half a period of a cosine over the training."""
        progress = self.iteration / self.num_iterations
        first, last = self.settings.lr, self.settings.lr_end
        return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))
