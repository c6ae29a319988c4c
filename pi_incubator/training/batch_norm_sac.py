"""Soft actor-critic on networks with batch normalization: what FlashSAC and CrossQ share.

Letters: K shards of a minibatch, B samples of a shard, D observation width, A actions, C critics, F outputs
of a critic.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.batch_norm_sac import BatchNormSACSettings
from pi_incubator.data.replay.replay import NEXT, OBS
from pi_incubator.distributed import Distributed
from pi_incubator.layers.batch_norm import follow_moments
from pi_incubator.layers.critic import NUM_CRITICS
from pi_incubator.layers.encoder import observation_of
from pi_incubator.layers.network import BatchNormNetwork
from pi_incubator.layers.stacked import TrunkEncoder
from pi_incubator.layers.unit_norm import rescale
from pi_incubator.networks import make_network
from pi_incubator.policies.squashed_gaussian import SquashedGaussian, SquashedGaussianPolicy
from pi_incubator.training.adam import Adam
from pi_incubator.training.delayed import DelayedActor
from pi_incubator.training.off_policy import OffPolicy
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step

Settings = TypeVar("Settings", bound=BatchNormSACSettings)


class BatchNormSAC(OffPolicy[Settings]):
    """Twin critics, a squashed Gaussian policy, and a temperature tuned to an entropy.

    A concrete algorithm sets `num_outputs` of its critics, what these are worth, their loss, and the entropy.
    """

    policy: SquashedGaussianPolicy
    report_names = ("loss/critic", "loss/actor", "policy/entropy", "policy/temperature")

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings, device = self.settings, env.device
        assert isinstance(self.network, BatchNormNetwork)
        self.critics = self.network.critics(NUM_CRITICS, self.num_outputs).to(device)
        self.log_temperature = torch.tensor(settings.initial_temperature, device=device).log()
        assert isinstance(self.policy.encoder, TrunkEncoder)
        self.trunk = self.policy.encoder.trunk
        self.lr = torch.tensor(settings.lr, device=device)
        self.actor_weights = list(self.policy.parameters())
        self.critic_weights = list(self.critics.parameters())
        self.actor_optimizer = Adam(self.actor_weights, self.lr, betas=settings.betas)
        self.critic_optimizer = Adam(self.critic_weights, self.lr, betas=settings.betas)
        self.temperature_optimizer = Adam([self.log_temperature], self.lr, betas=settings.betas)
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
        return SquashedGaussianPolicy(cfg.network, make_network(cfg.network, spec), spec).to(spec.device)

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """F."""

    @property
    @abstractmethod
    def target_entropy(self) -> float:
        """Of the policy, in nats, with actions in (-1, 1)."""

    @abstractmethod
    def value_of(self, outputs: Tensor) -> Tensor:
        """Outputs of the critics `[C, K, B, F]` -> what they are worth `[C, K, B]`."""

    @abstractmethod
    def critic_loss(self, minibatch: TensorDict) -> tuple[Tensor, list[Tensor]]:
        """The loss of the critics, and what their batch normalizations saw."""

    def step(self, minibatch: TensorDict) -> Tensor:
        return self.steps(minibatch)

    def parts(self) -> dict[str, Part]:
        return super().parts() | {
            "critics": Part(self.critics, is_learned=True),
            "temperature": Part(NamedTensors(log_temperature=self.log_temperature), is_learned=True),
            "steps": Part(self.steps),
            "actor_optimizer": Part(self.actor_optimizer),
            "critic_optimizer": Part(self.critic_optimizer),
            "temperature_optimizer": Part(self.temperature_optimizer),
        }

    def both_steps(self, minibatch: TensorDict) -> tuple[Tensor, Tensor]:
        """What the critics see, and the log-probability `[K, B]` of the next action, a sampled one.

        This step and the next one are one batch `[K, 2 B, D + A]`, so that both are normalized by the same
        moments (CrossQ, Bhatt et al. 2024, arXiv 1902.05605).
        """
        valid = self.in_shards(minibatch["valid"].unsqueeze(-1))
        now, following = self._observations(minibatch, self.network.critic_groups)
        _, next_obs = self._observations(minibatch, self.network.actor_groups)
        next_action, log_prob = self._sample(self.trunk(next_obs), minibatch, 1)
        this_step = torch.cat((now, self.in_shards(self.policy.to_unit(minibatch["action"]))), -1)
        next_step = torch.cat((following, torch.where(valid, next_action, 0.0)), -1)
        return torch.cat((this_step, next_step), -2), log_prob

    def in_shards(self, rows: Tensor) -> Tensor:
        """`[K B, ...]` of a minibatch -> `[K, B, ...]`."""
        return rows.unflatten(0, (len(self.shards), -1))

    def _critic_gradients(self, minibatch: TensorDict) -> tuple[list[Tensor], Tensor]:
        """Gradients of the critics, then what their batch normalizations saw."""
        with self.autocast():
            loss, moments = self.critic_loss(minibatch)
        return [*torch.autograd.grad(loss, self.critic_weights), *moments], loss.detach().view(1)

    def _apply_to_critics(self, means: list[Tensor], sound: Tensor) -> None:
        num_weights = len(self.critic_weights)
        self.critic_optimizer.step(means[:num_weights], sound)
        rescale(self.critics, sound)
        follow_moments(self.critics, means[num_weights:], sound)

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
        observations = self._observations(minibatch, self.network.actor_groups)
        moments: list[Tensor] = []
        features = self.trunk(torch.cat(observations, -2), moments).chunk(2, -2)[0]
        action, log_prob = self._sample(features, minibatch, 0)
        now, _ = self._observations(minibatch, self.network.critic_groups)
        values = self.value_of(self.critics(torch.cat((now, action), -1)))
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
        noise = self.in_shards(minibatch["noise"][:, which])
        mean, std = self.policy.before_tanh(features)
        return SquashedGaussian(mean, std, noise).rsample_and_log_prob()

    def _observations(self, minibatch: TensorDict, groups: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Groups before and after the step, normalized, each `[K, B, D]`; zeros where the world broke, so
        that an impossible state is not in the moments of the batch."""
        valid, normalizer = minibatch["valid"].unsqueeze(-1), self.policy.normalizer

        def at(moment: str) -> Tensor:
            normalized = {group: normalizer[group](minibatch[moment + group]) for group in groups}
            return self.in_shards(torch.where(valid, observation_of(normalized, groups), 0.0))

        return at(OBS), at(NEXT)
