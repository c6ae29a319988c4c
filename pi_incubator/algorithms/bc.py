"""Behavioral cloning (Pomerleau 1989): maximum likelihood of the recorded actions.

Letters: B samples of a minibatch.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.bc import BCSettings
from pi_incubator.distributed import Distributed
from pi_incubator.networks import make_network
from pi_incubator.policies.bounded_gaussian import BoundedGaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.adam import Adam
from pi_incubator.training.loss_input import masked_mean
from pi_incubator.training.offline import Offline
from pi_incubator.training.step import Phase, make_step


@algorithm("bc")
class BC(Offline[BCSettings]):
    """A policy that imitates the dataset."""

    policy: BoundedGaussianPolicy
    report_names = ("loss/actor",)

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        self.actor_features, _ = self.make_features()
        self.actor_weights = list(self.policy.parameters())
        self.optimizer = Adam(self.actor_weights, torch.tensor(self.settings.lr, device=env.device))
        phases = [Phase(self._gradients, self.optimizer.step)]
        self._step = make_step(phases, distributed, compute, self.skipped)

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> BoundedGaussianPolicy:
        return BoundedGaussianPolicy(cfg.network, make_network(cfg.network, spec), spec).to(spec.device)

    def step(self, minibatch: TensorDict) -> Tensor:
        return self._step(minibatch)

    def parts(self) -> dict[str, Part]:
        return super().parts() | {"optimizer": Part(self.optimizer)}

    def _gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        with self.autocast():
            features = self.actor_features.now(minibatch)
            log_prob = self.policy.log_prob(features, self.policy.to_unit(minibatch["action"]))
            loss = -masked_mean(log_prob, minibatch["valid"])
        return torch.autograd.grad(loss, self.actor_weights), loss.detach().view(1)
