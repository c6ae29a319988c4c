"""Implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169, eq. 5, 6 and 7).

TorchRL's `IQLLoss` has the same losses, but its critics' loss ignores which steps are valid and over how many
steps a reward is summed.

Letters: B samples of a minibatch, A actions, F features.
"""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.iql import IQLSettings
from pi_incubator.distributed import Distributed
from pi_incubator.layers.critic import NUM_CRITICS, StateActionValue
from pi_incubator.networks import make_network
from pi_incubator.policies.bounded_gaussian import BoundedGaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.adam import Adam
from pi_incubator.training.loss_input import masked_mean
from pi_incubator.training.offline import Offline
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step
from pi_incubator.training.targets import follow

LARGEST_WEIGHT = 100.0
"""The largest weight of an action in the policy's loss (the paper's appendix B)."""


@algorithm("iql")
class IQL(Offline[IQLSettings]):
    """Two critics, a value function that is an expectile of their values, and weighted behavioral cloning."""

    policy: BoundedGaussianPolicy
    report_names = ("loss/value", "value/mean", "loss/actor", "loss/critic")

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings, device = self.settings, env.device
        self.actor_features, self.critic_features = self.make_features()
        self.target_features = self.critic_features.as_target()
        width = self.critic_features.encoder.num_features
        critics = [StateActionValue(self.network, width) for _ in range(NUM_CRITICS)]
        self.critics = nn.ModuleList(critics).to(device)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.value = self.network.head(width, 1, output_gain=1.0).to(device)
        self.actor_weights = list(self.policy.parameters())
        self.value_weights = list(self.value.parameters())
        self.critic_weights = [*self.critic_features.encoder.parameters(), *self.critics.parameters()]
        targets = (self.target_features.encoder, self.target_critics)
        self.target_weights = [weight for module in targets for weight in module.parameters()]
        lr_actor, lr_critic = (
            torch.tensor(lr, device=device) for lr in (settings.lr_actor, settings.lr_critic)
        )
        self.actor_optimizer = Adam(self.actor_weights, lr_actor)
        self.value_optimizer = Adam(self.value_weights, lr_critic)
        self.critic_optimizer = Adam(self.critic_weights, lr_critic.clone())
        phases = [
            Phase(self._value_gradients, self.value_optimizer.step),
            Phase(self._actor_gradients, self.actor_optimizer.step),
            Phase(self._critic_gradients, self._apply_to_critics),
        ]
        self._step = make_step(phases, distributed, compute, self.skipped)

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> BoundedGaussianPolicy:
        return BoundedGaussianPolicy(cfg.network, make_network(cfg.network, spec), spec).to(spec.device)

    def step(self, minibatch: TensorDict) -> Tensor:
        return self._step(minibatch)

    def parts(self) -> dict[str, Part]:
        weights = {"critic": self.critic_weights, "target": self.target_weights, "value": self.value_weights}
        named = {f"{name}.{i}": w.data for name, ws in weights.items() for i, w in enumerate(ws)}
        return super().parts() | {
            "critics": Part(NamedTensors(**named), is_learned=True),
            "actor_optimizer": Part(self.actor_optimizer),
            "value_optimizer": Part(self.value_optimizer),
            "critic_optimizer": Part(self.critic_optimizer),
        }

    def _value_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        """Eq. 5: a squared error's weight is `expectile` where the target is larger, else 1 - `expectile`."""
        with self.autocast():
            with torch.no_grad():
                target, features = self._target_value(minibatch), self.critic_features.now(minibatch)
            value = self.value(features).squeeze(-1)
            error = target - value
            weight = torch.where(error > 0, self.settings.expectile, 1.0 - self.settings.expectile)
            loss = masked_mean(weight * error.square(), minibatch["valid"])
        report = torch.stack((loss.detach(), masked_mean(value.detach(), minibatch["valid"])))
        return torch.autograd.grad(loss, self.value_weights), report

    def _actor_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        """Eq. 7: the likelihood of recorded actions, weighted by the exponential of their advantage.

        Peng et al. 2019, arXiv 1910.00177.
        """
        with self.autocast():
            with torch.no_grad():
                value = self.value(self.critic_features.now(minibatch)).squeeze(-1)
                advantage = self._target_value(minibatch) - value
                weight = (self.settings.inverse_temperature * advantage).exp().clamp_max(LARGEST_WEIGHT)
            features = self.actor_features.now(minibatch)
            log_prob = self.policy.log_prob(features, self.policy.to_unit(minibatch["action"]))
            loss = -masked_mean(weight * log_prob, minibatch["valid"])
        return torch.autograd.grad(loss, self.actor_weights), loss.detach().view(1)

    def _critic_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        """Eq. 6: the target bootstraps from the value function, so the next state needs no action."""
        settings = self.settings
        with self.autocast():
            with torch.no_grad():
                following = self.value(self.critic_features.following(minibatch)).squeeze(-1)
                discount = settings.gamma ** minibatch["num_steps"] * ~minibatch["terminated"]
                target = settings.reward_scale * minibatch["reward"] + discount * following
            features, action = self.critic_features.now(minibatch), self.policy.to_unit(minibatch["action"])
            errors = [critic(features, action).squeeze(-1) - target for critic in self.critics]
            loss = masked_mean(torch.stack(errors).square().sum(0), minibatch["valid"])
        return torch.autograd.grad(loss, self.critic_weights), loss.detach().view(1)

    def _apply_to_critics(self, gradients: list[Tensor], sound: Tensor) -> None:
        self.critic_optimizer.step(gradients, sound)
        follow(self.target_weights, self.critic_weights, self.settings.tau, sound)

    def _target_value(self, minibatch: TensorDict) -> Tensor:
        """The smaller of the target critics' values `[B]` of the recorded actions."""
        features, action = self.target_features.now(minibatch), self.policy.to_unit(minibatch["action"])
        return torch.stack([critic(features, action).squeeze(-1) for critic in self.target_critics]).amin(0)
