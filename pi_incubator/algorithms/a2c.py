"""Advantage actor-critic (Mnih et al. 2016, arXiv 1602.01783, section 4), synchronous, on TorchRL's loss."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import A2CLoss

from envs_gpu.vec_env import VecEnv
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.a2c import A2CSettings
from pi_incubator.distributed import Distributed
from pi_incubator.registry import algorithm
from pi_incubator.training.advantage import bootstrap_broken_steps, use_kernel_gae
from pi_incubator.training.policy_gradient import ACTOR_FEATURES, CRITIC_FEATURES, PolicyGradient


@algorithm("a2c")
class A2C(PolicyGradient[A2CSettings]):
    """The policy gradient with a value function as baseline.

    Only the first minibatch of a rollout gives an unbiased gradient: for later ones the policy has changed,
    and no importance ratio corrects that.
    """

    report_names = ("loss/policy", "loss/value", "policy/entropy")
    stored_keys = ("advantage", "value_target")

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings = self.settings
        self.loss = A2CLoss(
            self.torchrl_actor(),
            TensorDictModule(self.critic.head, in_keys=[CRITIC_FEATURES], out_keys=["state_value"]),
            entropy_coeff=settings.entropy_coef,
            critic_coeff=settings.value_coef,
            loss_critic_type="l2",
            functional=False,
        )
        use_kernel_gae(self.loss, settings, distributed.group)

    def advantage(self, data: TensorDict) -> None:
        bootstrap_broken_steps(data, self.settings.reward_scale)
        self.loss.value_estimator(data)

    def losses(self, samples: TensorDict) -> tuple[Tensor, Sequence[Tensor]]:
        losses = self.loss(samples)
        loss = losses["loss_objective"] + losses["loss_critic"]
        if self.settings.entropy_coef:
            loss = loss + losses["loss_entropy"]
            entropy = losses["entropy"]
        else:  # TorchRL does not compute the entropy then
            entropy = self.policy.distribution(samples[ACTOR_FEATURES]).entropy().mean()
        return loss, (losses["loss_objective"], losses["loss_critic"], entropy)
