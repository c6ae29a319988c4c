"""What off-policy algorithms share: minibatches of single steps, or of windows of them, for their critics.

Letters: A actions, B samples of a minibatch, in windows n of T steps each.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.errors import SettingError
from envs_gpu.mirror import EnvMirror
from envs_gpu.vec_env import VecEnv
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.data.replay.replay import Replay
from pi_incubator.distributed import Distributed
from pi_incubator.training.buffered import Buffered
from pi_incubator.training.features import Features
from pi_incubator.training.make_replay import make_replay
from pi_incubator.training.symmetry import mirror_half, mirror_of

Settings = TypeVar("Settings", bound=ReplaySettings)


class OffPolicy(Buffered[Settings]):
    """Learns from minibatches of the buffer.

    A concrete algorithm sets `policy` and `step`.
    """

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        self.mirror = self._make_mirror() if self.settings.symmetry else None
        self.surprise = torch.zeros(self.settings.batch_size, device=env.device)
        """How far the critics were off at each sample `[B]` of the last minibatch; `step` writes it."""

    def make_buffer(self) -> tuple[tuple[str, ...], Replay]:
        groups, width = self.network.groups, self.policy.state_width
        capacity = self.settings.stored_steps(self.cfg)
        return groups, make_replay(self.settings, capacity, self.env, groups, self.sampling, width)

    @abstractmethod
    def step(self, minibatch: TensorDict) -> Tensor:
        """One optimizer step on a minibatch of the buffer, with `noise` `[B, 2, A]` or, in windows,
        `[n, T, 2, A]`; gives a report."""

    def note(self, minibatch: TensorDict) -> None:
        if self.settings.replay == "prioritized":
            self.replay.update_priority(minibatch["index"], self.surprise)

    def make_features(self) -> tuple[Features, Features]:
        """Of the policy's encoder, and of a new one that the critics share.

        So a recurrent network has one encoder for all critics, apart from the policy's, as in Ni et al. 2022
        (arXiv 2110.05038).
        """
        policy, network, burn_in = self.policy, self.network, self.settings.burn_in
        encoder = network.critic_encoder().to(self.env.device)
        return (
            Features(policy.encoder, policy.groups, policy.normalizer, burn_in, acts=True),
            Features(encoder, network.critic_groups, policy.normalizer, burn_in),
        )

    def _make_mirror(self) -> EnvMirror:
        """The mirror for every second sample of a shard.

        Raises:
            SettingError: a shard has one sample, or the task declares no mirror.
        """
        if self.settings.batch_size < 2 * len(self.shards):
            problem = "has no effect on shards with one sample of algorithm.batch_size each"
            raise SettingError(
                "algorithm.symmetry", True, problem, "remove it, or raise algorithm.batch_size"
            )
        return mirror_of(self.env, self.network.groups, "algorithm.symmetry", True)

    def sample(self, size: int) -> TensorDict:
        """Steps of batch `[size]` to learn from."""
        return self.replay.sample(size)

    def minibatch(self, size: int) -> TensorDict:
        minibatch = self.sample(size)
        if self.mirror:
            mirror_half(minibatch, self.mirror, len(self.shards))
        # [2, B, A] filled by shards of B, stored as [B, 2, A], in windows as [n, T, 2, A].
        noise = torch.empty(2, size, self.env.spec.action_dim, device=self.env.device)
        self.learning_noise.normal_(noise)
        minibatch["noise"] = noise.transpose(0, 1).unflatten(0, minibatch["reward"].shape)
        return minibatch
