"""FlashSAC: soft actor-critic with categorical critics, and networks of fixed norm.

Kim et al. 2026, arXiv 2604.04539.

Letters: K shards of a minibatch, B samples of a shard, A actions, C critics, Z bins of a value.
"""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import EnvSpec, StepResult, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.flash_sac import FlashSACSettings
from pi_incubator.data.replay.replay import NEXT, OBS
from pi_incubator.distributed import Distributed
from pi_incubator.layers.unit_norm import follow_moments, rescale
from pi_incubator.networks import make_network
from pi_incubator.networks.flash import Flash, FlashEncoder
from pi_incubator.policies.squashed_gaussian import SquashedGaussian, SquashedGaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.adam import Adam
from pi_incubator.training.categorical import make_bins, project
from pi_incubator.training.delayed import DelayedActor
from pi_incubator.training.off_policy import OffPolicy
from pi_incubator.training.repeated_noise import RepeatedNoise
from pi_incubator.training.reward_scale import RewardScale
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step

NUM_CRITICS = 2
LOG_STD_RANGE = (-10.0, 2.0)
"""Of the Gaussian before it is squashed."""


@algorithm("flash_sac")
class FlashSAC(OffPolicy[FlashSACSettings]):
    """Twin categorical critics, a squashed Gaussian policy, and a temperature tuned to an entropy."""

    network: Flash
    policy: SquashedGaussianPolicy
    report_names = ("loss/critic", "loss/actor", "policy/entropy", "policy/temperature")

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings, device, num_actions = self.settings, env.device, env.spec.action_dim
        self.critics = self.network.critics(NUM_CRITICS, settings.num_bins).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = torch.tensor(settings.initial_temperature, device=device).log()
        self.target_entropy = num_actions * math.log(math.sqrt(2 * math.pi * math.e) * settings.target_std)
        assert isinstance(self.policy.encoder, FlashEncoder)
        self.trunk = self.policy.encoder.trunk
        self.bins = make_bins(settings.num_bins, settings.largest_value, device)
        self.reward_scale = RewardScale(env.num_envs, settings.gamma, settings.largest_value, device)
        self.repeated = RepeatedNoise(env.num_envs, num_actions, settings.noise_repeat, device)
        self.lr = torch.tensor(settings.lr, device=device)
        self.actor_weights = list(self.policy.parameters())
        self.critic_weights = list(self.critics.parameters())
        self.actor_optimizer = Adam(self.actor_weights, self.lr)
        self.critic_optimizer = Adam(self.critic_weights, self.lr)
        self.temperature_optimizer = Adam([self.log_temperature], self.lr)
        self.steps = DelayedActor(
            Phase(self._actor_gradients, self._apply_to_actor),
            Phase(self._critic_gradients, self._apply_to_critics),
            settings.actor_every,
            num_reports=3,
            make=partial(make_step, distributed=distributed, compute=compute, skipped=self.skipped),
            device=device,
        )

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> SquashedGaussianPolicy:
        network = make_network(cfg.network, spec)
        return SquashedGaussianPolicy(cfg.network, network, spec, LOG_STD_RANGE).to(spec.device)

    def step(self, minibatch: TensorDict) -> Tensor:
        self.lr.fill_(self._lr_now())
        return self.steps(minibatch)

    def collect(self) -> None:
        super().collect()
        self.reward_scale.commit(self.distributed)

    def make_noise(self) -> Tensor:
        length = torch.empty(1, self.env.num_envs, device=self.env.device)
        self.noise.normal_(length)
        return self.repeated.next(super().make_noise(), length[0])

    def observe(self, result: StepResult) -> None:
        self.reward_scale.observe(result)

    def parts(self) -> dict[str, Part]:
        return super().parts() | {
            "critics": Part(self.critics, is_learned=True),
            "targets": Part(self.targets, is_learned=True),
            "temperature": Part(NamedTensors(log_temperature=self.log_temperature), is_learned=True),
            "steps": Part(self.steps),
            "reward_scale": Part(self.reward_scale, is_learned=True),  # the unit of the critics
            "returns": Part(NamedTensors(returns=self.reward_scale.returns), per_rank=True),
            "repeated_noise": Part(self.repeated, per_rank=True),
            "actor_optimizer": Part(self.actor_optimizer),
            "critic_optimizer": Part(self.critic_optimizer),
            "temperature_optimizer": Part(self.temperature_optimizer),
        }

    def _critic_gradients(self, minibatch: TensorDict) -> tuple[list[Tensor], Tensor]:
        """Gradients of the critics, then what their batch normalizations saw."""
        with self.autocast():
            loss, moments = self._critic_loss(minibatch)
        return [*torch.autograd.grad(loss, self.critic_weights), *moments], loss.detach().view(1)

    def _critic_loss(self, minibatch: TensorDict) -> tuple[Tensor, list[Tensor]]:
        """The loss of the critics, and what their batch normalizations saw.

        This step and the next one go through the critics as one batch, so that both are normalized by the
        same moments (CrossQ, Bhatt et al. 2024, arXiv 1902.05605).
        """
        valid = minibatch["valid"]
        now, following = self._observations(minibatch, self.network.critic_group)
        with torch.no_grad():
            _, next_obs = self._observations(minibatch, self.network.actor_group)
            next_action, log_prob = self._sample(self.trunk(next_obs), minibatch, 1)
            action = self._in_shards(self.policy.to_unit(minibatch["action"]))
            next_action = torch.where(self._in_shards(valid.unsqueeze(-1)), next_action, 0.0)
            inputs = torch.cat((torch.cat((now, action), -1), torch.cat((following, next_action), -1)), -2)
            target = self._target(self.targets(inputs, []).chunk(2, -2)[1], log_prob, minibatch)
        moments: list[Tensor] = []
        log_probability = self.critics(inputs, moments).chunk(2, -2)[0].log_softmax(-1)  # [C, K, B, Z]
        cross_entropy = -(target * log_probability).sum(-1).mean(0).flatten()
        # The KL divergence, as in Rainbow (Hessel et al. 2018): zero where the target is met.
        self.surprise.copy_(cross_entropy.detach() - torch.special.entr(target).sum(-1).flatten())
        weight = minibatch.get("weight", 1.0)
        loss = torch.where(valid, weight * cross_entropy, 0.0).sum() / valid.sum().clamp_min(1)
        return loss, moments

    def _target(self, logits: Tensor, log_prob: Tensor, minibatch: TensorDict) -> Tensor:
        """Probabilities `[K, B, Z]` of the bins for the value of this step, from the targets' logits
        `[C, K, B, Z]` for the next one: those of the critic that expects less (Fujimoto et al. 2018, eq. 10).
        """
        first, second = logits.softmax(-1).unbind()
        expects_less = (first * self.bins).sum(-1) <= (second * self.bins).sum(-1)  # [K, B]
        probability = torch.where(expects_less.unsqueeze(-1), first, second)
        bonus = self.log_temperature.exp() * log_prob
        reward = self._in_shards((minibatch["reward"] / self.reward_scale.scale).unsqueeze(-1))
        goes_on = self._in_shards((~minibatch["terminated"]).to(reward).unsqueeze(-1))
        discount = self._in_shards((self.settings.gamma ** minibatch["num_steps"]).unsqueeze(-1))
        value = reward + discount * goes_on * (self.bins - bonus.unsqueeze(-1))
        return project(probability, value, self.bins)

    def _apply_to_critics(self, means: list[Tensor], sound: Tensor) -> None:
        gradients, moments = means[: len(self.critic_weights)], means[len(self.critic_weights) :]
        self.critic_optimizer.step(gradients, sound)
        rescale(self.critics, sound)
        follow_moments(self.critics, moments, sound)
        with torch.no_grad():
            tau = torch.where(sound, self.settings.tau, 0.0)
            for target, weight in zip(self.targets.parameters(), self.critic_weights, strict=True):
                target.lerp_(weight, tau)

    def _actor_gradients(self, minibatch: TensorDict) -> tuple[list[Tensor], Tensor]:
        """Gradients of the policy, that of the logarithm of the temperature, and what the policy's batch
        normalizations saw of this step and the next one."""
        with self.autocast():
            loss, entropy, moments = self._actor_loss(minibatch)
        temperature = self.log_temperature.exp()
        of_temperature = temperature * (entropy - self.target_entropy)  # of exp(log) * (entropy - target)
        gradients = [*torch.autograd.grad(loss, self.actor_weights), of_temperature, *moments]
        return gradients, torch.stack((loss.detach(), entropy, temperature))

    def _actor_loss(self, minibatch: TensorDict) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The loss of the policy, its entropy, and what its batch normalizations saw."""
        valid = minibatch["valid"]
        observations = self._observations(minibatch, self.network.actor_group)
        moments: list[Tensor] = []
        features = self.trunk(torch.cat(observations, -2), moments).chunk(2, -2)[0]
        action, log_prob = self._sample(features, minibatch, 0)
        now, _ = self._observations(minibatch, self.network.critic_group)
        values = (self.critics(torch.cat((now, action), -1)).softmax(-1) * self.bins).sum(-1)  # [C, K, B]
        objective = (values.amin(0) - self.log_temperature.exp() * log_prob).flatten()
        num_valid = valid.sum().clamp_min(1)
        loss = -torch.where(valid, objective, 0.0).sum() / num_valid
        entropy = -torch.where(valid, log_prob.detach().flatten(), 0.0).sum() / num_valid
        return loss, entropy, moments

    def _apply_to_actor(self, means: list[Tensor], sound: Tensor) -> None:
        num_weights = len(self.actor_weights)
        self.actor_optimizer.step(means[:num_weights], sound)
        self.temperature_optimizer.step([means[num_weights]], sound)
        rescale(self.policy, sound)
        follow_moments(self.policy, means[num_weights + 1 :], sound)

    def _sample(self, features: Tensor, minibatch: TensorDict, which: int) -> tuple[Tensor, Tensor]:
        """An action in (-1, 1) `[K, B, A]` with its log-probability `[K, B]`, from one of the two noises."""
        noise = self._in_shards(minibatch["noise"][:, which])
        mean, std = self.policy.before_tanh(features)
        return SquashedGaussian(mean, std, noise).rsample_and_log_prob()

    def _observations(self, minibatch: TensorDict, group: str) -> tuple[Tensor, Tensor]:
        """A group before and after the step, normalized, each `[K, B, D]`; zeros where the world broke, so
        that an impossible state is not in the moments of the batch."""
        valid, normalizer = minibatch["valid"].unsqueeze(-1), self.policy.normalizer[group]
        now, following = (
            self._in_shards(torch.where(valid, normalizer(minibatch[moment + group]), 0.0))
            for moment in (OBS, NEXT)
        )
        return now, following

    def _in_shards(self, rows: Tensor) -> Tensor:
        """`[K B, D]` of a minibatch -> `[K, B, D]`."""
        return rows.unflatten(0, (len(self.shards), -1))

    def _lr_now(self) -> float:
        """Half a period of a cosine over the training."""
        progress = self.iteration / self.num_iterations
        first, last = self.settings.lr, self.settings.lr_end
        return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))
