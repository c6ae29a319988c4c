"""Proximal policy optimization (Schulman et al. 2017, clipped surrogate of eq. 7), on TorchRL's loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.nn.functional import mse_loss
from torchrl.modules import IndependentNormal
from torchrl.objectives import ClipPPOLoss

from envs_gpu.vec_env import EnvSpec, VecEnv
from kernels.normalize import gather_moments, make_moments, merge_moments, normalize_value
from kernels.ppo_loss import ppo_loss
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.ppo import PPOSettings
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.networks import make_network
from pi_incubator.policies.actor_critic import ValueFunction
from pi_incubator.policies.policy import Policy
from pi_incubator.registry import algorithm
from pi_incubator.training.adam import clip_by_norm
from pi_incubator.training.advantage import KernelGAE
from pi_incubator.training.minibatches import Minibatches, Samples, Sequences
from pi_incubator.training.muon import make_optimizer, output_weights
from pi_incubator.training.on_policy import OnPolicy
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step
from pi_incubator.training.symmetry import mirror_of

# Adaptive learning rate: the factor that changes it, how far the KL divergence may be from the desired one
# before that (the rule of rsl_rl, Schwarke et al. 2025).
LR_FACTOR, KL_TOLERANCE = 1.5, 2.0
METRICS = ("loss/policy", "loss/value", "policy/entropy", "policy/kl", "policy/clip_fraction")
ACTOR_FEATURES, CRITIC_FEATURES = "actor_features", "critic_features"


@algorithm("ppo")
class PPO(OnPolicy[PPOSettings]):
    """Clipped PPO with minibatches, gradient clipping, entropy bonus and a scheduled learning rate.

    The minibatches of a network with a state are whole sequences of some worlds, and the gradient goes back
    through all of their steps.
    """

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings = self.settings
        self.loss = self._make_loss()
        self.parameters = list(self.model.parameters())
        # A tensor, so that schedules change it on the device and a captured graph sees the change.
        self.lr = torch.tensor(settings.lr, device=env.device)
        self.num_updates = torch.zeros((), dtype=torch.int64)
        # Apart from the noise of actions: an update may go on while actions are sampled.
        self.order = ShardedRandom(cfg.experiment.seed, "minibatches", self.shards, env.device)
        outputs = output_weights(self.model)
        self.optimizer = make_optimizer(settings.optimizer, self.parameters, self.lr, outputs, eps=1e-5)
        weight, group = settings.symmetry_coef, self.policy.group
        self.mirror = mirror_of(env, (group,), "algorithm.symmetry_coef", weight) if weight else None
        self.metric_names = METRICS + (("loss/symmetry",) if self.mirror else ())
        self.step = make_step([Phase(self._gradients, self._apply)], distributed, compute, self.skipped)

    def make_critic(self, spec: EnvSpec) -> ValueFunction:
        network = make_network(self.cfg.network, spec)
        return ValueFunction(network, self.policy, self.settings.normalize_value)

    def advantage(self, data: TensorDict) -> None:
        # In place, once a rollout: what is reported was summed by the env, unscaled.
        reward, valid = data["next", "reward"], data["valid"]
        reward.mul_(self.settings.reward_scale)
        # The reward of a broken step is the value of its state: its advantage is zero, and earlier steps are
        # bootstrapped with that value, as if the episode had been truncated there.
        reward.copy_(torch.where(valid, reward, data["state_value"]))
        self.loss.value_estimator(data)
        if self.settings.normalize_value:
            self._normalize_values(data)

    def learn(self, data: TensorDict) -> dict[str, Tensor]:
        settings = self.settings
        if settings.lr_schedule == "linear":
            self.lr.fill_(settings.lr * (1.0 - self.num_updates.item() / self.num_iterations))
        minibatches = self._minibatches(data)
        totals = torch.zeros(len(self.metric_names), device=self.lr.device)
        num_minibatches = data.numel() // settings.minibatch_size
        for _ in range(settings.num_epochs):
            epoch = torch.zeros_like(totals)
            for minibatch in minibatches.shuffled(self.order):
                epoch += self.step(minibatch)
            totals += epoch
            self._adapt_lr(epoch[3] / num_minibatches)
        self.num_updates += 1
        means = totals / (settings.num_epochs * num_minibatches)
        metrics = dict(zip(self.metric_names, means.unbind(), strict=True))
        metrics["policy/lr"] = self.lr.clone()
        metrics["policy/std"] = self.policy.log_std.detach().exp().mean()
        return metrics

    def parts(self) -> dict[str, Part]:
        return super().parts() | {
            "optimizer": Part(self.optimizer),
            "schedule": Part(NamedTensors(lr=self.lr, num_updates=self.num_updates)),
            "minibatches": Part(self.order, per_rank=True),
        }

    def _normalize_values(self, data: TensorDict) -> None:
        """Let the value targets join the moments of all ranks, then normalize targets and values by these.

        The moments are those of the critic that acts: an update in the background never reads them.
        """
        moments, target = self.actor.critic.moments, data["value_target"]
        assert moments is not None
        gathered = make_moments(1, moments.device)
        gather_moments(target, gathered, data["valid"].squeeze(-1))
        merge_moments(moments, self.distributed.merge_moments(gathered))
        for values in (target, data["state_value"]):
            values.copy_(normalize_value(values, moments, update=False))

    def _minibatches(self, data: TensorDict) -> Minibatches:
        groups, size = self.model.groups, self.settings.minibatch_size
        keys = [*groups, "action", "action_log_prob", "advantage", "value_target", "state_value"]
        return (Sequences if self.model.state_width else Samples)(data, keys, size)

    def _gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients of the loss, and the numbers of `metric_names`."""
        loss, report = self._losses(minibatch)
        return torch.autograd.grad(loss, self.parameters), report

    def _apply(self, gradients: list[Tensor], sound: Tensor) -> None:
        self.optimizer.step(clip_by_norm(gradients, self.settings.max_grad_norm), sound)

    def _losses(self, minibatch: TensorDict) -> tuple[Tensor, Tensor]:
        with self.autocast():
            samples = self._with_features(minibatch)
            losses = self._loss_terms(samples)
            symmetry = [self._symmetry_loss(samples)] if self.mirror else []
        loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
        # E[r - 1 - log r] is never negative and has less variance than E[-log r] (Schulman 2020).
        kl = losses["mean_ratio"] - 1.0 + losses["kl_approx"]
        report = (
            losses["loss_objective"],
            losses["loss_critic"],
            losses["entropy"],
            kl,
            losses["clip_fraction"],
            *symmetry,
        )
        loss = loss + self.settings.symmetry_coef * symmetry[0] if symmetry else loss
        return loss, torch.stack([value.detach() for value in report])

    def _loss_terms(self, samples: TensorDict) -> Mapping[str, Tensor]:
        """TorchRL's names -> 0-dim losses and what is reported beside them, of samples `[B]`."""
        if self.settings.loss == "torchrl":
            terms: TensorDict = self.loss(samples)
            return terms
        mean, _ = self.policy.moments_of(samples[ACTOR_FEATURES])
        fused = ppo_loss(
            mean=mean,
            log_std=self.policy.log_std,
            action=samples["action"],
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

    def _symmetry_loss(self, samples: TensorDict) -> Tensor:
        """How far the mean action in the mirror image of an observation is from the mirror image of the mean
        action, squared (Yu et al. 2018, arXiv 1801.08093).

        As in rsl_rl: the mean over samples and actions, and the second one is a fixed target.
        """
        assert self.mirror is not None
        policy, group = self.policy, self.policy.group
        normalizer = policy.normalizer.of(group)
        # Normalized entries have means and units of their own, so raw ones change places.
        image = normalizer(self.mirror.groups[group](normalizer.inverse(samples[group])))
        features, _ = policy.encoder(image, policy.initial_state(0))
        mean, _ = policy.moments_of(features)
        with torch.no_grad():
            target = self.mirror.action(policy.moments_of(samples[ACTOR_FEATURES])[0])
        return mse_loss(mean, target)

    def _with_features(self, minibatch: TensorDict) -> TensorDict:
        """The minibatch's samples `[B]`, with the features that the heads of policy and critic read."""
        names = (ACTOR_FEATURES, CRITIC_FEATURES)
        if not self.model.state_width:
            observations = {group: minibatch[group] for group in self.model.groups}
            return minibatch.replace(dict(zip(names, self.model.encode(observations), strict=True)))
        samples = minibatch["samples"]
        observations = {group: samples[group] for group in self.model.groups}
        features = self.model.sequence(observations, minibatch["state"], minibatch["starts"])
        return samples.replace(dict(zip(names, features, strict=True))).flatten()[minibatch["order"]]

    def _adapt_lr(self, kl: Tensor) -> None:
        """Change the learning rate where the KL divergence of an epoch is too far from the desired one."""
        if self.settings.lr_schedule != "adaptive":
            return
        desired = self.settings.desired_kl
        too_far, too_near = kl > desired * KL_TOLERANCE, kl < desired / KL_TOLERANCE
        factor = torch.where(too_far, 1.0 / LR_FACTOR, torch.where(too_near, LR_FACTOR, 1.0))
        self.lr.mul_(factor).clamp_(self.settings.lr_min, self.settings.lr_max)

    def _make_loss(self) -> ClipPPOLoss:
        """TorchRL's loss, on the features of policy and critic."""
        settings = self.settings
        actor = ProbabilisticTensorDictSequential(
            TensorDictModule(_Distribution(self.policy), in_keys=[ACTOR_FEATURES], out_keys=["loc", "scale"]),
            ProbabilisticTensorDictModule(
                in_keys=["loc", "scale"],
                out_keys=["action"],
                distribution_class=IndependentNormal,
                return_log_prob=True,
            ),
        )
        critic = TensorDictModule(self.critic.head, in_keys=[CRITIC_FEATURES], out_keys=["state_value"])
        loss = ClipPPOLoss(
            actor,
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
        loss.make_value_estimator(
            KernelGAE,
            gamma=settings.gamma,
            lmbda=settings.gae_lambda,
            time_dim=0,
            normalize=settings.normalize_advantage,
            mask_key="valid",
            group=self.distributed.group,
        )
        return loss


class _Distribution(torch.nn.Module):
    """The policy's mean and standard deviation as a module, for TensorDictModule."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy.moments_of(features)
