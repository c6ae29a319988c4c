"""Proximal policy optimization (Schulman et al. 2017, clipped surrogate of eq. 7), on TorchRL's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from envs_gpu.vec_env import EnvSpec, VecEnv
from kernels.normalize import gather_moments, make_moments, merge_moments, normalize_value
from kernels.ppo_loss import ppo_loss
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.ppo import PPOSettings
from pi_incubator.distributed import Distributed
from pi_incubator.layers.encoder import observation_of
from pi_incubator.networks import make_network
from pi_incubator.policies.actor_critic import ValueFunction
from pi_incubator.registry import algorithm
from pi_incubator.training import novelty
from pi_incubator.training.advantage import bootstrap_broken_steps, use_kernel_gae
from pi_incubator.training.novelty import Novelty
from pi_incubator.training.policy_gradient import ACTOR_FEATURES, CRITIC_FEATURES, KL, PolicyGradient
from pi_incubator.training.step import Phase


@algorithm("ppo")
class PPO(PolicyGradient[PPOSettings]):
    """Clipped PPO with minibatches, gradient clipping, entropy bonus and a scheduled learning rate."""

    report_names = ("loss/policy", "loss/value", "policy/entropy", KL, "policy/clip_fraction")
    stored_keys: tuple[str, ...] = ("action_log_prob", "advantage", "value_target", "state_value")

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        self.novelty = _make_novelty(cfg, env)
        if self.novelty:
            self.stored_keys = (*PPO.stored_keys, novelty.KEY)
        super().__init__(cfg, env, distributed, compute)
        self.loss = self._make_loss()

    def make_critic(self, spec: EnvSpec) -> ValueFunction:
        network = make_network(self.cfg.network, spec)
        return ValueFunction(network, self.policy, self.settings.normalize_value)

    def phases(self) -> list[Phase]:
        phases = super().phases()
        if self.novelty:
            self.metric_names = (*self.metric_names, "loss/novelty")
            phases.append(Phase(self.novelty.gradients, self.novelty.apply))
        return phases

    def advantage(self, data: TensorDict) -> None:
        bootstrap_broken_steps(data, self.settings.reward_scale)
        if self.novelty:
            self._add_novelty(data, self.novelty)
        self.loss.value_estimator(data)
        if self.settings.normalize_value:
            self._normalize_values(data)

    def losses(self, samples: TensorDict) -> tuple[Tensor, Sequence[Tensor]]:
        losses = self._loss_terms(samples)
        loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
        # E[r - 1 - log r] is never negative and has less variance than E[-log r] (Schulman 2020).
        kl = losses["mean_ratio"] - 1.0 + losses["kl_approx"]
        names = ("loss_objective", "loss_critic", "entropy")
        return loss, (*(losses[name] for name in names), kl, losses["clip_fraction"])

    def learn(self, data: TensorDict) -> dict[str, Tensor]:
        metrics = super().learn(data)
        return metrics | {"reward/novelty": self.mean_novelty.clone()} if self.novelty else metrics

    def parts(self) -> dict[str, Part]:
        return super().parts() | (dict(self.novelty.parts()) if self.novelty else {})

    def _add_novelty(self, data: TensorDict, bonus: Novelty) -> None:
        """Add the intrinsic reward to that of the task, but in steps of broken worlds."""
        groups, normalizer = self.policy.groups, self.policy.normalizer
        raw = {group: normalizer.of(group).inverse(data[group]) for group in groups}
        last = observation_of(self.env.obs, groups)
        after = torch.cat((observation_of(raw, groups)[1:], last[None]))  # [T, N, D]
        reward, data[novelty.KEY] = bonus.reward(after, self.distributed)
        self.mean_novelty = reward.mean()
        reward = self.settings.rnd_coef * reward.unsqueeze(-1)
        data["next", "reward"].add_(torch.where(data["valid"], reward, 0.0))

    def _normalize_values(self, data: TensorDict) -> None:
        """Update the moments of value targets over all ranks, then normalize targets and values by them.

        The moments are those of the critic that acts: an update in the background never reads them.
        """
        moments, target = self.actor.critic.moments, data["value_target"]
        assert moments is not None
        gathered = make_moments(1, moments.device)
        gather_moments(target, gathered, data["valid"].squeeze(-1))
        merge_moments(moments, self.distributed.merge_moments(gathered))
        for values in (target, data["state_value"]):
            values.copy_(normalize_value(values, moments, update=False))

    def _loss_terms(self, samples: TensorDict) -> Mapping[str, Tensor]:
        """TorchRL's names -> 0-dim losses and what is reported beside them, of samples `[B]`."""
        if self.settings.loss == "torchrl":
            terms: TensorDict = self.loss(samples)
            return terms
        fused = ppo_loss(
            **self.policy.kernel_inputs(samples[ACTOR_FEATURES], samples["action"]),
            log_prob=samples["action_log_prob"],
            advantage=samples["advantage"].squeeze(-1),
            value=self.critic.head(samples[CRITIC_FEATURES]).squeeze(-1),
            value_target=samples["value_target"].squeeze(-1),
            clip_epsilon=self.settings.clip_ratio,
            entropy_coeff=self.settings.entropy_coef,
            critic_coeff=self.settings.value_coef,
            loss_critic_type="l2",
            old_value=samples["state_value"].squeeze(-1) if self.settings.clip_value_loss else None,
            clip_value=self.settings.clip_ratio if self.settings.clip_value_loss else None,
        )
        return fused._asdict()

    def _make_loss(self) -> ClipPPOLoss:
        """TorchRL's loss, on the features of policy and critic."""
        settings = self.settings
        critic = TensorDictModule(self.critic.head, in_keys=[CRITIC_FEATURES], out_keys=["state_value"])
        loss = ClipPPOLoss(
            self.torchrl_actor(),
            critic,
            clip_epsilon=settings.clip_ratio,
            entropy_coeff=settings.entropy_coef,
            critic_coeff=settings.value_coef,
            loss_critic_type="l2",
            clip_value=settings.clip_value_loss,
            functional=False,
        )
        if settings.clip_value_loss:
            # A number instead of TorchRL's tensor, which it would read from the device at every step.
            del loss.clip_value
            loss.clip_value = settings.clip_ratio
        use_kernel_gae(loss, settings, self.distributed.group)
        return loss


def _make_novelty(cfg: ExperimentConfig, env: VecEnv) -> Novelty | None:
    """The intrinsic reward, weighted by `algorithm.rnd_coef`."""
    settings = cast(PPOSettings, cfg.algorithm)
    if not settings.rnd_coef:
        return None
    width = sum(env.spec.obs_dims[group] for group in make_network(cfg.network, env.spec).actor_groups)
    return Novelty(width, env.num_envs, settings.gamma, settings.rnd_lr, env.device)
