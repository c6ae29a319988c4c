"""What off-policy algorithms share: steps go into a replay buffer, and minibatches of it are learned from.

Letters: N worlds, A actions, B samples of a minibatch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import EnvSpec, StepResult, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.data.replay.prioritized import Prioritized
from pi_incubator.data.replay.replay import Replay, steps_of
from pi_incubator.data.replay.ring import Ring
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.networks import make_network
from pi_incubator.policies.bounded import BoundedPolicy
from pi_incubator.training.algorithm import Algorithm

Settings = TypeVar("Settings", bound=ReplaySettings)


class OffPolicy(Algorithm[Settings]):
    """Collects some steps of every world, then takes `updates_per_step` optimizer steps for each of them.

    A concrete algorithm sets `policy` and `step`.
    """

    policy: BoundedPolicy
    report_names: tuple[str, ...]
    """Names of the numbers that `step` reports."""

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        seed, device = cfg.experiment.seed, env.device
        self.network = make_network(cfg.network, env.spec)
        self.policy = self.make_policy(cfg, env.spec)
        self.noise = ShardedRandom(seed, "action noise", self.shards, device)
        self.sampling = ShardedRandom(seed, "replay", self.shards, device)
        self.learning_noise = ShardedRandom(seed, "learning noise", self.shards, device)
        self.replay: Replay = self._make_replay()
        self.surprise = torch.zeros(self.settings.batch_size, device=device)
        """How far the critics were off at each sample `[B]` of the last minibatch; `step` writes it."""

    @staticmethod
    @abstractmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> BoundedPolicy: ...

    @abstractmethod
    def step(self, minibatch: TensorDict) -> Tensor:
        """One optimizer step on a minibatch of the buffer, with `noise` `[B, 2, A]`; gives a report."""

    def make_noise(self) -> Tensor:
        """The exploration noise `[N, A]` of the next step, standard normal."""
        noise = torch.empty(1, self.env.num_envs, self.env.spec.action_dim, device=self.env.device)
        self.noise.normal_(noise)
        return noise[0]

    def observe(self, result: StepResult) -> None:
        """Look at what a step of the worlds gave, beside storing it."""

    @torch.no_grad()
    def collect(self) -> None:
        env, policy = self.env, self.policy
        state = policy.initial_state(env.num_envs)
        starts_at, steps_of_all = self.settings.learning_starts, env.num_envs * self.distributed.world_size
        for t in range(self.settings.horizon):
            obs = {group: value.clone() for group, value in env.obs.items()}
            policy.normalizer.observe(obs)
            noise = self.make_noise()
            if self.env_steps + t * steps_of_all < starts_at:
                # Uniform between the env's limits: the normal distribution's quantile of the noise.
                action = policy.to_env_units(torch.special.ndtr(noise) * 2.0 - 1.0)
            else:
                action = policy.act(obs, state, noise).action
            result = env.step(action)
            self.observe(result)
            self.replay.add(steps_of(obs, action, result, self.network.groups))
        policy.normalizer.commit(self.distributed.merge_moments)
        self._finish_iteration()

    def update(self) -> dict[str, Tensor]:
        settings = self.settings
        totals = torch.zeros(len(self.report_names), device=self.env.device)
        num_updates = self.num_updates()
        for _ in range(num_updates):
            minibatch = self.minibatch(settings.batch_size)
            totals += self.step(minibatch)
            if settings.replay == "prioritized":
                self.replay.update_priority(minibatch["index"], self.surprise)
        metrics = dict(zip(self.report_names, (totals / max(1, num_updates)).unbind(), strict=True))
        return metrics if num_updates else {}

    def parts(self) -> dict[str, Part]:
        return super().parts() | {
            "replay": Part(self.replay, self.settings.save_buffer, per_rank=True, any_size=True),
            "noise": Part(self.noise, per_rank=True),
            "sampling": Part(self.sampling, per_rank=True),
            "learning_noise": Part(self.learning_noise, per_rank=True),
        }

    def _make_replay(self) -> Replay:
        settings = self.settings
        what = (settings.buffer_size, self.env.spec, self.network.groups, self.sampling)
        options: dict[str, Any] = {"n_step": settings.n_step, "gamma": settings.gamma}
        options["dtype"] = getattr(torch, settings.storage)
        if settings.replay == "uniform":
            return Ring(*what, **options)
        exponent, correction = settings.priority_exponent, settings.priority_correction
        return Prioritized(*what, **options, exponent=exponent, correction=correction)

    def num_updates(self) -> int:
        """Optimizer steps that the environment steps of the last iteration are worth.

        None for random actions, and none while a buffer that was not saved is filled again.
        """
        starts, per_step = self.settings.learning_starts, self.settings.updates_per_step
        if len(self.replay) < min(starts // self.distributed.world_size, self.replay.capacity):
            return 0
        now = max(0, self.env_steps - starts)
        before = max(0, now - self.cfg.steps_per_iteration * self.distributed.world_size)
        return int(now * per_step) - int(before * per_step)

    def minibatch(self, size: int) -> TensorDict:
        """A minibatch as `step` takes it."""
        minibatch = self.replay.sample(size)
        # [2, B, A] filled by shards of B, stored as [B, 2, A].
        noise = torch.empty(2, size, self.env.spec.action_dim, device=self.env.device)
        self.learning_noise.normal_(noise)
        minibatch["noise"] = noise.transpose(0, 1)
        return minibatch
