"""What PPO, A2C and GRPO share: epochs of minibatches of a rollout, and a scheduled learning rate.

Letters: T horizon, N worlds, B samples of a minibatch, K reported numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from envs_gpu.vec_env import VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.policy_gradient import PolicyGradientSettings
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.layers.encoder import observation_of
from pi_incubator.policies.stochastic import StochasticPolicy
from pi_incubator.training.adam import clip_by_norm
from pi_incubator.training.minibatches import Minibatches, Samples, Sequences
from pi_incubator.training.muon import make_optimizer, output_weights
from pi_incubator.training.on_policy import OnPolicy
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step
from pi_incubator.training.symmetry import mirror_of

# Adaptive learning rate: the factor that changes it, how far the KL divergence may be from the desired one
# before that (the rule of rsl_rl, Schwarke et al. 2025).
LR_FACTOR, KL_TOLERANCE = 1.5, 2.0
KL = "policy/kl"
ACTOR_FEATURES, CRITIC_FEATURES = "actor_features", "critic_features"
Settings = TypeVar("Settings", bound=PolicyGradientSettings)


class PolicyGradient(OnPolicy[Settings]):
    """Learns from a rollout in minibatches, with gradient clipping and a scheduled learning rate.

    The minibatches of a network with a state are whole sequences of some worlds, and the gradient goes back
    through all of their steps.

    A concrete algorithm writes the advantage, and the losses of a minibatch.
    """

    report_names: tuple[str, ...]
    """Names of what `losses` reports; `policy/kl` steers an adaptive learning rate."""
    stored_keys: tuple[str, ...]
    """What `losses` reads of a rollout beside observations and actions."""

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings = self.settings
        self.parameters = list(self.model.parameters())
        # A tensor, so that schedules change it on the device and a captured graph sees the change.
        self.lr = torch.tensor(settings.lr, device=env.device)
        self.num_updates = torch.zeros((), dtype=torch.int64)
        # Apart from the noise of actions: an update may go on while actions are sampled.
        self.order = ShardedRandom(cfg.experiment.seed, "minibatches", self.shards, env.device)
        outputs = output_weights(self.model)
        self.optimizer = make_optimizer(settings.optimizer, self.parameters, self.lr, outputs, eps=1e-5)
        weight, groups = settings.symmetry_coef, self.policy.groups
        self.mirror = mirror_of(env, groups, "algorithm.symmetry_coef", weight) if weight else None
        self.metric_names = self.report_names + (("loss/symmetry",) if self.mirror else ())
        self.step = make_step(self.phases(), distributed, compute, self.skipped)

    def phases(self) -> list[Phase]:
        """What an optimizer step consists of; what more is reported than `metric_names` joins them."""
        return [Phase(self._gradients, self._apply)]

    @abstractmethod
    def losses(self, samples: TensorDict) -> tuple[Tensor, Sequence[Tensor]]:
        """The loss of samples `[B]` with `ACTOR_FEATURES` and `CRITIC_FEATURES`, and what is reported."""

    def learn(self, data: TensorDict) -> dict[str, Tensor]:
        settings = self.settings
        if settings.lr_schedule == "linear":
            self.lr.fill_(settings.lr * (1.0 - self.num_updates.item() / self.num_iterations))
        minibatches = self._minibatches(data)
        totals = torch.zeros(len(self.metric_names), device=self.lr.device)
        num_minibatches = data.numel() // settings.minibatch_size
        for _ in range(settings.num_passes):
            epoch = torch.zeros_like(totals)
            for minibatch in minibatches.shuffled(self.order):
                epoch += self.step(minibatch)
            totals += epoch
            if KL in self.report_names:
                self._adapt_lr(epoch[self.report_names.index(KL)] / num_minibatches)
        self.num_updates += 1
        means = totals / (settings.num_passes * num_minibatches)
        metrics = dict(zip(self.metric_names, means.unbind(), strict=True))
        metrics["policy/lr"] = self.lr.clone()
        return metrics | self.policy.metrics()

    def parts(self) -> dict[str, Part]:
        return super().parts() | {
            "optimizer": Part(self.optimizer),
            "schedule": Part(NamedTensors(lr=self.lr, num_updates=self.num_updates)),
            "minibatches": Part(self.order, per_rank=True),
        }

    def torchrl_actor(self) -> ProbabilisticTensorDictSequential:
        """The policy in the form that TorchRL's losses take, from `ACTOR_FEATURES` on."""
        keys = list(self.policy.distribution_keys)
        inputs = TensorDictModule(_Distribution(self.policy), in_keys=[ACTOR_FEATURES], out_keys=keys)
        return ProbabilisticTensorDictSequential(
            inputs,
            ProbabilisticTensorDictModule(
                in_keys=keys,
                out_keys=["action"],
                distribution_class=self.policy.distribution_class,
                return_log_prob=True,
            ),
        )

    def _minibatches(self, data: TensorDict) -> Minibatches:
        keys = [*self.model.groups, "action", *self.stored_keys]
        kind = Sequences if self.model.state_width else Samples
        return kind(data, keys, self.settings.minibatch_size)

    def _gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients of the loss, and the numbers of `metric_names`."""
        loss, report = self._losses(minibatch)
        return torch.autograd.grad(loss, self.parameters), report

    def _apply(self, gradients: list[Tensor], sound: Tensor) -> None:
        self.optimizer.step(clip_by_norm(gradients, self.settings.max_grad_norm), sound)

    def _losses(self, minibatch: TensorDict) -> tuple[Tensor, Tensor]:
        with self.autocast():
            samples = self._with_features(minibatch)
            loss, report = self.losses(samples)
            symmetry = [self._symmetry_loss(samples)] if self.mirror else []
        loss = loss + self.settings.symmetry_coef * symmetry[0] if symmetry else loss
        return loss, torch.stack([value.detach() for value in (*report, *symmetry)])

    def _symmetry_loss(self, samples: TensorDict) -> Tensor:
        """How far the mean action in the mirror image of an observation is from the mirror image of the mean
        action, squared (Yu et al. 2018, arXiv 1801.08093).

        As in rsl_rl: the mean over samples and actions, and the second one is a fixed target.
        """
        assert self.mirror is not None
        policy, images = self.policy, {}
        for group in policy.groups:
            normalizer = policy.normalizer.of(group)
            # Raw observations are mirrored: normalized entries have different means and scales, so exchanging
            # left and right there would change their meaning.
            images[group] = normalizer(self.mirror.groups[group](normalizer.inverse(samples[group])))
        features, _ = policy.encoder(observation_of(images, policy.groups), policy.initial_state(0))
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


class _Distribution(nn.Module):
    """What the policy's distribution is made of, as a module for TensorDictModule."""

    def __init__(self, policy: StochasticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.policy.distribution_inputs(features)
