"""Soft actor-critic (Haarnoja et al. 2018b, arXiv 1812.05905, eq. 5, 9 and 18), on TorchRL's losses.

Where actions are discrete, expectations over them are sums (Christodoulou 2019, arXiv 1910.07207).

Letters: B samples of a minibatch.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import DiscreteSACLoss, SACLoss

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.sac import SACSettings
from pi_incubator.config.without_effect import is_default, value_of
from pi_incubator.distributed import Distributed
from pi_incubator.networks import make_network
from pi_incubator.policies.categorical import CategoricalPolicy
from pi_incubator.policies.squashed_gaussian import SquashedGaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.adam import Adam
from pi_incubator.training.features import samples_of
from pi_incubator.training.loss_input import ACTOR, CRITIC, loss_input, masked_mean, mean_weight
from pi_incubator.training.muon import make_optimizer, output_weights
from pi_incubator.training.off_policy import OffPolicy
from pi_incubator.training.sac_loss import continuous_loss, discrete_loss
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step
from pi_incubator.training.targets import follow


@algorithm("sac")
class SAC(OffPolicy[SACSettings]):
    """Twin critics, a squashed Gaussian or categorical policy, and a temperature tuned to an entropy."""

    policy: SquashedGaussianPolicy | CategoricalPolicy
    report_names: tuple[str, ...] = (
        "loss/critic",
        "loss/actor",
        "loss/temperature",
        "policy/temperature",
        "policy/entropy",
    )

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings, device = self.settings, env.device
        self.actor_features, self.critic_features = self.make_features()
        self.target_features = self.critic_features.as_target()
        self.loss = self._make_loss().to(device)
        is_discrete = isinstance(self.loss, DiscreteSACLoss)
        self._critic_loss = self.loss.qvalue_loss if is_discrete else self.loss.qvalue_v2_loss
        self.actor_weights = list(self.policy.parameters())
        heads = list(self.loss.qvalue_network_params.values(True, True))
        self.critic_weights = [*self.critic_features.encoder.parameters(), *heads]
        self.target_weights = [
            *self.target_features.encoder.parameters(),
            *self.loss.target_qvalue_network_params.values(True, True),
        ]
        lr_actor = torch.tensor(settings.lr_actor, device=device)
        lr_critic = torch.tensor(settings.lr_critic, device=device)
        outputs = output_weights(self.policy)
        self.actor_optimizer = make_optimizer(settings.optimizer, self.actor_weights, lr_actor, outputs)
        # Output layers of critics have one row each: for Muon they are vectors.
        self.critic_optimizer = make_optimizer(
            settings.optimizer, self.critic_weights, lr_critic, stacked=heads
        )
        lr_temperature = torch.tensor(settings.lr_temperature, device=device)
        self.temperature_optimizer = Adam([self.loss.log_alpha], lr_temperature)
        critics = Phase(self._critic_gradients, self._apply_to_critics)
        actor = Phase(self._actor_gradients, self._apply_to_actor)
        self._step = make_step([critics, actor], distributed, compute, self.skipped)

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> SquashedGaussianPolicy | CategoricalPolicy:
        kind = SquashedGaussianPolicy if spec.num_choices is None else CategoricalPolicy
        return kind(cfg.network, make_network(cfg.network, spec), spec).to(spec.device)

    def step(self, minibatch: TensorDict) -> Tensor:
        return self._step(minibatch)

    def parts(self) -> dict[str, Part]:
        weights = {"critic": self.critic_weights, "target": self.target_weights}
        named = {f"{name}.{i}": w.data for name, ws in weights.items() for i, w in enumerate(ws)}
        critics = NamedTensors(**named, log_temperature=self.loss.log_alpha.data)
        return super().parts() | {
            "critics": Part(critics, is_learned=True),
            "actor_optimizer": Part(self.actor_optimizer),
            "critic_optimizer": Part(self.critic_optimizer),
            "temperature_optimizer": Part(self.temperature_optimizer),
        }

    def _critic_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        with self.autocast():
            features = {CRITIC: self.critic_features.now(minibatch)}
            with torch.no_grad():
                following = {
                    ACTOR: self.actor_features.following(minibatch),
                    CRITIC: self.target_features.following(minibatch),
                }
            loss, about = self._critic_loss(self._loss_input(minibatch, features, following))
        self.surprise.copy_(about["td_error"].detach())
        loss = loss * mean_weight(minibatch)
        return torch.autograd.grad(loss, self.critic_weights), loss.detach().view(1)

    def _apply_to_critics(self, gradients: list[Tensor], sound: Tensor) -> None:
        self.critic_optimizer.step(gradients, sound)

    def _actor_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients of the policy, then that of the logarithm of the temperature."""
        with self.autocast():
            features = {ACTOR: self.actor_features.now(minibatch)}
            with torch.no_grad():
                features[CRITIC] = self.critic_features.now(minibatch)
            steps = self._loss_input(minibatch, features, {})
            loss, about = self.loss.actor_loss(steps.exclude("priority_weight"))
        temperature_loss = masked_mean(self.loss.alpha_loss(about["log_prob"]), steps["valid"])
        total = loss + temperature_loss
        gradients = torch.autograd.grad(total, [*self.actor_weights, self.loss.log_alpha])
        entropy = -about["log_prob"].mean()
        report = (loss, temperature_loss, self.loss.log_alpha.exp(), entropy)
        return gradients, torch.stack([value.detach() for value in report])

    def _apply_to_actor(self, gradients: list[Tensor], sound: Tensor) -> None:
        *of_actor, of_temperature = gradients
        self.actor_optimizer.step(of_actor, sound)
        self.temperature_optimizer.step([of_temperature], sound)
        follow(self.target_weights, self.critic_weights, self.settings.tau, sound)

    def _loss_input(
        self, minibatch: TensorDict, features: dict[str, Tensor], next_features: dict[str, Tensor]
    ) -> TensorDict:
        """The minibatch under the names that TorchRL's loss reads."""
        samples, scale = samples_of(minibatch), self.settings.reward_scale
        now, following = samples["noise"].unbind(1)
        return loss_input(samples, self.policy, features, next_features, scale, (now, following))

    def _make_loss(self) -> SACLoss | DiscreteSACLoss:
        """The loss for the env's kind of actions.

        Raises:
            SettingError: the setting of the target entropy is for the other kind of actions.
        """
        discrete = isinstance(self.policy, CategoricalPolicy)
        field = "algorithm.target_entropy" if discrete else "algorithm.entropy_share"
        if not is_default(self.cfg, field):
            kind = "discrete" if discrete else "continuous"
            problem = f"has no effect on {self.env.spec.name}, whose actions are {kind}"
            raise SettingError(field, value_of(self.cfg, field), problem, "remove it")
        num_features = self.critic_features.encoder.num_features
        if isinstance(self.policy, CategoricalPolicy):
            return discrete_loss(self.settings, self.network, self.policy, num_features)
        return continuous_loss(self.settings, self.network, self.policy, num_features)
