"""Group relative policy optimization for control (Shao et al. 2024, arXiv 2402.03300, sections 4.1.1-4.1.3).

Letters: T horizon, N worlds, G worlds of a group, B samples of a minibatch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec, VecEnv
from kernels.discounted_return import discounted_return
from kernels.group_advantage import group_advantage
from kernels.normalize import gather_moments, make_moments, mean_and_std
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.grpo import GRPOSettings
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.policies.actor_critic import NoCritic
from pi_incubator.registry import algorithm
from pi_incubator.saved_state import load_module
from pi_incubator.training.policy_gradient import ACTOR_FEATURES, KL, PolicyGradient

REFERENCE = "reference_log_prob"


@algorithm("grpo")
class GRPO(PolicyGradient[GRPOSettings]):
    """PPO's clipped surrogate, whose baseline is the mean return of a group of worlds instead of a critic.

    At the start of a rollout, the worlds of a group of G become copies of one of them, which is chosen at
    random; its episode may be at any step. Then every world gets different exploration noise.

    The return of a step is the discounted sum of rewards until the episode or the rollout ends. No value is
    bootstrapped behind the rollout, so the horizon has to be long enough for the task. The last `lookahead`
    steps are not learned from, because their returns contain few of their consequences.

    The advantage of a step is its return minus the mean return of its group at the same step of the rollout.
    This baseline has no bias. Its variance grows during the rollout, because the states of a group are equal
    at the start only.

    By default, advantages are divided by their standard deviation over all groups (`normalize: batch`). The
    paper divides by that of each group, which gives a group whose returns hardly differ as much weight as one
    in which some worlds succeed and others fail.

    With `kl_coef`, the loss includes the KL divergence from the policy at the start of the run (eq. 4).
    """

    report_names: tuple[str, ...] = ("loss/policy", "policy/entropy", KL, "policy/clip_fraction")
    stored_keys: tuple[str, ...] = ("action_log_prob", "advantage")

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        if not env.can_copy_worlds:
            problem = f"it compares copies of worlds, and those of {env.spec.name} cannot be copied"
            raise SettingError("algorithm.name", "grpo", problem, "name another one, or one of our own tasks")
        if cast(GRPOSettings, cfg.algorithm).kl_coef:
            self.report_names = (*GRPO.report_names, "policy/reference_kl")
            self.stored_keys = (*GRPO.stored_keys, REFERENCE)
        super().__init__(cfg, env, distributed, compute)
        self._check_shards()
        self.reference = copy.deepcopy(self.policy).requires_grad_(False) if self.settings.kl_coef else None
        self.choice = ShardedRandom(cfg.experiment.seed, "sources of groups", self.shards, env.device)
        self._first_of_group = torch.arange(0, env.num_envs, self.settings.group_size, device=env.device)

    def _check_shards(self) -> None:
        """Refuse shards that would cut a group."""
        num_groups, shards = self.env.num_envs // self.settings.group_size, len(self.shards)
        if num_groups % shards:
            problem = (
                f"makes {num_groups} groups, which cannot be divided among the {shards} shards of a process"
            )
            fix = "change it, env.num_envs or compute.shards"
            raise SettingError("algorithm.group_size", self.settings.group_size, problem, fix)

    def make_critic(self, spec: EnvSpec) -> NoCritic:
        return NoCritic(self.policy)

    def collect(self) -> None:
        if self.reference and self.iteration == 0:  # after other weights may have been loaded
            load_module(self.reference, self.policy.state_dict())
        size = self.settings.group_size
        chosen = torch.cat(self.choice.integers(size, self.env.num_envs // size // len(self.shards)))
        source = (self._first_of_group + chosen).repeat_interleave(size)  # [N]
        self.env.copy_worlds(source)
        self.rollout.state.copy_(self.rollout.state[source])
        super().collect()

    def advantage(self, data: TensorDict) -> None:
        reward, terminated, done, valid = (
            x.squeeze(-1)  # [T, N]
            for x in (*(data["next", key] for key in ("reward", "terminated", "done")), data["valid"])
        )
        nothing = torch.zeros_like(reward)
        reward.mul_(self.settings.reward_scale)
        returns = discounted_return(reward, nothing, terminated, done, self.settings.gamma)
        # The return of an episode whose world broke is not known, so none of its steps count.
        valid &= discounted_return((~valid).to(nothing.dtype), nothing, terminated, done, 1.0) == 0
        size = self.settings.group_size
        advantage = centered(returns, valid, size)
        if self.settings.normalize == "group":
            advantage = group_advantage(advantage, size, valid)
        else:
            advantage /= self._std(advantage, valid)
        data["advantage"] = advantage.unsqueeze(-1)
        if self.reference:
            data[REFERENCE] = self._reference_log_prob(data)

    def learn(self, data: TensorDict) -> dict[str, Tensor]:
        return super().learn(data[: self.settings.learned_horizon])

    def losses(self, samples: TensorDict) -> tuple[Tensor, Sequence[Tensor]]:
        clip, advantage = self.settings.clip_ratio, samples["advantage"].squeeze(-1)
        distribution = self.policy.distribution(samples[ACTOR_FEATURES])
        log_ratio = distribution.log_prob(samples["action"]) - samples["action_log_prob"]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
        objective = torch.minimum(ratio * advantage, clipped * advantage).mean()
        entropy = distribution.entropy().mean()
        loss = -objective - self.settings.entropy_coef * entropy
        # E[r - 1 - log r] is never negative (Schulman 2020).
        kl, outside = (ratio - 1.0 - log_ratio).mean(), (ratio != clipped).float().mean()
        if self.reference is None:
            return loss, (-objective, entropy, kl, outside)
        difference = samples[REFERENCE] - distribution.log_prob(samples["action"])
        reference_kl = (difference.exp() - difference - 1.0).mean()
        return loss + self.settings.kl_coef * reference_kl, (-objective, entropy, kl, outside, reference_kl)

    def _std(self, advantage: Tensor, valid: Tensor) -> Tensor:
        """The standard deviation of advantages `[T, N]` that are `valid`, over the groups of all ranks."""
        moments = make_moments(1, advantage.device)
        gather_moments(advantage.flatten().unsqueeze(-1), moments, valid.flatten())
        _, std = mean_and_std(self.distributed.merge_moments(moments))
        return std.to(advantage)

    @torch.no_grad()
    def _reference_log_prob(self, data: TensorDict) -> Tensor:
        """Log-probabilities `[T, N]` of a rollout's actions by the first policy, with its normalizer."""
        assert self.reference is not None
        ours, reference = self.policy.normalizer, self.reference
        raw = {group: ours.of(group).inverse(data[group]).flatten(0, 1) for group in self.policy.groups}
        features, _ = reference.encode(raw, reference.initial_state(0))
        log_prob = self.reference.distribution(features).log_prob(data["action"].flatten(0, 1))
        return log_prob.unflatten(0, data.shape)

    def parts(self) -> dict[str, Part]:
        parts = super().parts() | {"groups": Part(self.choice, per_rank=True)}
        del parts["critic"]
        if self.reference:
            parts["reference"] = Part(self.reference)
        return parts


def centered(returns: Tensor, valid: Tensor, group_size: int) -> Tensor:
    """Returns `[T, N]` minus the mean of their group of neighbouring worlds at the same time.

    Returns that are not valid are left out of the means, and their result is 0. A group of equal returns,
    such as one that always succeeds, gives exactly 0.
    """
    groups, kept = (x.unflatten(1, (-1, group_size)) for x in (returns, valid))  # [T, N / G, G]
    # Relative to one of them, the mean of equal returns is theirs without rounding.
    highest = torch.where(kept, groups, -torch.inf).amax(-1, keepdim=True)
    below = torch.where(kept, groups - highest, 0.0)
    mean = below.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(kept, below - mean, 0.0).flatten(1)
