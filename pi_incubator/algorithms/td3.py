"""TD3: twin delayed deep deterministic policy gradients, on TorchRL's loss.

Fujimoto et al. 2018, arXiv 1802.09477, algorithm 1.

Letters: B samples of a minibatch, A actions, F features.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import TD3Loss

from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.td3 import TD3Settings
from pi_incubator.distributed import Distributed
from pi_incubator.layers.critic import NUM_CRITICS, make_critics
from pi_incubator.networks import make_network
from pi_incubator.policies.deterministic import DeterministicPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.delayed import DelayedActor
from pi_incubator.training.features import samples_of
from pi_incubator.training.loss_input import ACTOR, CRITIC, loss_input, mean_weight
from pi_incubator.training.muon import make_optimizer, output_weights
from pi_incubator.training.off_policy import OffPolicy
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step
from pi_incubator.training.targets import follow


@algorithm("td3")
class TD3(OffPolicy[TD3Settings]):
    """Two critics and a deterministic policy, and a target network for each of the three."""

    policy: DeterministicPolicy
    report_names = ("loss/critic", "loss/actor")

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings, device = self.settings, env.device
        self.actor_features, self.critic_features = self.make_features()
        self.target_actor_features = self.actor_features.as_target()
        self.target_critic_features = self.critic_features.as_target()
        self.loss = self._make_loss().to(device)
        self.actor_weights = list(self.policy.parameters())
        heads = list(self.loss.qvalue_network_params.values(True, True))
        self.critic_weights = [*self.critic_features.encoder.parameters(), *heads]
        self.targets = [
            *self.target_actor_features.encoder.parameters(),
            *self.loss.target_actor_network_params.values(True, True),
            *self.target_critic_features.encoder.parameters(),
            *self.loss.target_qvalue_network_params.values(True, True),
        ]
        self.spread = self._make_spread()
        lr_actor = torch.tensor(settings.lr_actor, device=device)
        lr_critic = torch.tensor(settings.lr_critic, device=device)
        outputs = output_weights(self.policy)
        self.actor_optimizer = make_optimizer(settings.optimizer, self.actor_weights, lr_actor, outputs)
        # Output layers of critics have one row each: for Muon they are vectors.
        self.critic_optimizer = make_optimizer(
            settings.optimizer, self.critic_weights, lr_critic, stacked=heads
        )
        self.steps = DelayedActor(
            Phase(self._actor_gradients, self._apply_to_actor),
            Phase(self._critic_gradients, self._apply_to_critics),
            settings.actor_every,
            num_reports=1,
            make=partial(make_step, distributed=distributed, compute=compute, skipped=self.skipped),
            device=device,
        )

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> DeterministicPolicy:
        assert isinstance(cfg.algorithm, TD3Settings)
        network, std = make_network(cfg.network, spec), cfg.algorithm.exploration_std
        return DeterministicPolicy(cfg.network, network, spec, std).to(spec.device)

    def scale_noise(self, noise: Tensor) -> Tensor:
        return noise if self.spread is None else noise * self.spread

    def step(self, minibatch: TensorDict) -> Tensor:
        return self.steps(minibatch)

    def parts(self) -> dict[str, Part]:
        weights = {"critic": self.critic_weights, "target": self.targets}
        named = {f"{name}.{i}": w.data for name, ws in weights.items() for i, w in enumerate(ws)}
        return super().parts() | {
            "critics": Part(NamedTensors(**named), is_learned=True),
            "steps": Part(self.steps),
            "actor_optimizer": Part(self.actor_optimizer),
            "critic_optimizer": Part(self.critic_optimizer),
        }

    def _make_spread(self) -> Tensor | None:
        """Each world's share `[N, 1]` of the exploration noise, evenly spaced over the worlds of all ranks.

        FastTD3 (Seo et al. 2025, arXiv 2505.22642) draws them at random for each episode instead.
        """
        settings, num_envs = self.settings, self.env.num_envs
        if settings.exploration_std_min is None:
            return None
        least = settings.exploration_std_min / max(settings.exploration_std, 1e-12)
        of_all = torch.linspace(1.0, least, num_envs * self.distributed.world_size, device=self.env.device)
        first = num_envs * self.distributed.rank
        return of_all[first : first + num_envs].unsqueeze(-1)

    def _critic_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        with self.autocast():
            features = {CRITIC: self.critic_features.now(minibatch)}
            with torch.no_grad():
                following = {
                    ACTOR: self.target_actor_features.following(minibatch),
                    CRITIC: self.target_critic_features.following(minibatch),
                }
            loss, about = self.loss.value_loss(self._loss_input(minibatch, features, following))
        self.surprise.copy_(about["td_error"].detach().amax(0).sqrt())
        loss = loss * mean_weight(minibatch)
        return torch.autograd.grad(loss, self.critic_weights), loss.detach().view(1)

    def _apply_to_critics(self, gradients: list[Tensor], sound: Tensor) -> None:
        self.critic_optimizer.step(gradients, sound)

    def _actor_gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        with self.autocast():
            features = {ACTOR: self.actor_features.now(minibatch)}
            with torch.no_grad():
                features[CRITIC] = self.critic_features.now(minibatch)
            steps = self._loss_input(minibatch, features, {})
            loss, _ = self.loss.actor_loss(steps.exclude("priority_weight"))
        return torch.autograd.grad(loss, self.actor_weights), loss.detach().view(1)

    def _apply_to_actor(self, gradients: list[Tensor], sound: Tensor) -> None:
        self.actor_optimizer.step(gradients, sound)
        follow(self.targets, self.actor_weights + self.critic_weights, self.settings.tau, sound)

    def _loss_input(
        self, minibatch: TensorDict, features: dict[str, Tensor], next_features: dict[str, Tensor]
    ) -> TensorDict:
        """The minibatch under TorchRL's names; the noise of the next step smooths the target policy."""
        settings, samples = self.settings, samples_of(minibatch)
        limit = settings.smoothing_clip
        noise = (samples["noise"][:, 1] * settings.smoothing_std).clamp(-limit, limit)
        noises = (torch.zeros_like(noise), noise)
        return loss_input(samples, self.policy, features, next_features, settings.reward_scale, noises)

    def _make_loss(self) -> TD3Loss:
        policy, one = self.policy, torch.ones(self.env.spec.action_dim)
        # TorchRL hands on to the critics only what the policy's module reads.
        actor = TensorDictModule(_Action(policy), in_keys=[ACTOR, "noise", CRITIC], out_keys=["action"])
        loss = TD3Loss(
            actor,
            make_critics(self.network, self.critic_features.encoder.num_features, CRITIC, NUM_CRITICS),
            bounds=(-one, one),
            num_qvalue_nets=NUM_CRITICS,
            loss_function="l2",
            policy_noise=0.0,  # ours is drawn by the training's own generators
        )
        loss.make_value_estimator(gamma=self.settings.gamma)
        loss.loss_mask_key = "valid"
        return loss


class _Action(nn.Module):
    """Features `[B, F]` -> action `[B, A]` around (-1, 1), with noise `[B, A]` added; `_` is not used."""

    def __init__(self, policy: DeterministicPolicy) -> None:
        super().__init__()
        self.head = policy.head
        self._policy = [policy]  # in a list, so that the loss does not own normalizer and encoder

    def forward(self, features: Tensor, noise: Tensor, _: Tensor) -> Tensor:
        (policy,) = self._policy
        return policy.unit_action(features) + noise
