"""Group relative policy optimization for control (Shao et al. 2024, arXiv 2402.03300, sections 4.1.1-4.1.3).

Letters: T horizon, N worlds, G worlds of a group, B samples of a minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.errors import EnvError, SettingError
from envs_gpu.vec_env import EnvSpec, VecEnv
from kernels.discounted_return import discounted_return
from kernels.group_advantage import group_advantage
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.grpo import GRPOSettings
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.policies.actor_critic import NoCritic
from pi_incubator.registry import algorithm
from pi_incubator.training.policy_gradient import ACTOR_FEATURES, KL, PolicyGradient


@algorithm("grpo")
class GRPO(PolicyGradient[GRPOSettings]):
    """The clipped surrogate of PPO, with the returns of copied worlds instead of a critic.

    Each rollout begins with groups of G equal worlds: the state of one of them, chosen at random, is copied
    to the others. It is that of a reset, or any that was visited. Then every world acts with its own noise.
    The return of a step is the discounted sum of the rewards until its episode or the rollout ends;
    nothing stands for what comes later, so the horizon has to be long enough for the task. The baseline is
    the mean return of the group at the same time of the rollout. The group shares its state at the start
    alone: later the baseline is that of a similar state, which is not biased, but has more variance.
    """

    report_names = ("loss/policy", "policy/entropy", KL, "policy/clip_fraction")
    stored_keys = ("action_log_prob", "advantage")

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        self.choice = ShardedRandom(cfg.experiment.seed, "sources of groups", self.shards, env.device)
        self._first_of_group = torch.arange(0, env.num_envs, self.settings.group_size, device=env.device)

    def make_critic(self, spec: EnvSpec) -> NoCritic:
        return NoCritic(self.policy)

    def collect(self) -> None:
        size = self.settings.group_size
        chosen = torch.cat(self.choice.integers(size, self.env.num_envs // size // len(self.shards)))
        source = (self._first_of_group + chosen).repeat_interleave(size)  # [N]
        try:
            self.env.copy_worlds(source)
        except EnvError as error:
            raise SettingError("algorithm.name", "grpo", str(error), "name another algorithm") from error
        self.rollout.state.copy_(self.rollout.state[source])
        super().collect()

    def advantage(self, data: TensorDict) -> None:
        reward = data["next", "reward"].squeeze(-1).mul_(self.settings.reward_scale)  # [T, N]
        ends = (data["next", key].squeeze(-1) for key in ("terminated", "done"))
        nothing = torch.zeros_like(reward)
        returns = discounted_return(reward, nothing, *ends, self.settings.gamma)
        data["advantage"] = relative(returns, data["valid"].squeeze(-1), self.settings.group_size).unsqueeze(
            -1
        )

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
        return loss, (-objective, entropy, kl, outside)

    def parts(self) -> dict[str, Part]:
        parts = super().parts() | {"groups": Part(self.choice, per_rank=True)}
        del parts["critic"]
        return parts


def relative(returns: Tensor, valid: Tensor, group_size: int) -> Tensor:
    """Advantages `[T, N]` of returns `[T, N]` within groups of neighbouring worlds; 0 where not valid.

    From each return the mean of its group at the same time is subtracted. The result is divided by its
    standard deviation in the group, over all steps. Equal returns, as those of a group that always
    succeeds, give exactly zero.
    """
    groups, kept = (x.unflatten(1, (-1, group_size)) for x in (returns, valid))  # [T, N / G, G]
    # Relative to one of them, the mean of equal returns is theirs without rounding.
    highest = torch.where(kept, groups, -torch.inf).amax(-1, keepdim=True)
    below = torch.where(kept, groups - highest, 0.0)
    centered = below - below.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1)
    return group_advantage(centered.flatten(1), group_size, valid)
