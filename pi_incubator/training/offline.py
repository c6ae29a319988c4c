"""What algorithms share that learn from recorded steps, and may then go on in worlds.

Letters: B samples of a minibatch, K shards of this rank.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from tensordict import TensorDict

from envs_gpu.vec_env import VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.offline import OfflineSettings
from pi_incubator.data.datasets.steps import load_steps
from pi_incubator.data.replay.replay import OBS
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.training.off_policy import OffPolicy

Settings = TypeVar("Settings", bound=OfflineSettings)


class Offline(OffPolicy[Settings]):
    """First takes `offline_updates` optimizer steps on a dataset, in iterations that step no world.

    Then it collects `training.total_steps` as an off-policy algorithm does, and a share of each minibatch is
    still of the dataset (Ball et al. 2023, arXiv 2302.02948). The dataset's steps are read again where a run
    continues, so checkpoints do not hold them. The observation normalizer begins with their moments.

    Where it stands before another base class, that one learns and this one gives it the steps to learn from.
    """

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings = self.settings
        self.dataset_sampling = ShardedRandom(cfg.experiment.seed, "dataset", self.shards, env.device)
        assert cfg.dataset.path is not None  # the settings have checked it
        self.dataset = load_steps(
            cfg.dataset.path,
            env.spec,
            self.network.groups,
            self.dataset_sampling,
            self.shards,
            len(self.shards) * distributed.world_size,
            n_step=settings.n_step,
            gamma=settings.gamma,
            dtype=getattr(torch, settings.storage),
        )
        self.is_offline = settings.num_offline_iterations() > 0
        """Whether this iteration steps no world."""
        recorded = self.dataset.state_dict()
        groups = self.policy.normalizer
        self.policy.normalizer.observe(
            {group: recorded[OBS + group].flatten(0, 1).float() for group in groups if group != "pixels"}
        )
        self.commit()

    def collect(self) -> None:
        self.is_offline = self.iteration < self.settings.num_offline_iterations()
        if self.is_offline:
            self.counters.iteration += 1
        else:
            super().collect()

    def num_updates(self) -> int:
        return self.settings.updates_per_iteration if self.is_offline else super().num_updates()

    def sample(self, size: int) -> TensorDict:
        """Steps of the dataset; once worlds are stepped, `dataset_share` of them, shard by shard."""
        num_shards = len(self.shards)
        from_dataset = num_shards * round(self.settings.dataset_share * size / num_shards)
        if self.is_offline or from_dataset == size:
            return self.dataset.sample(size)
        if not from_dataset:
            return super().sample(size)
        recorded, own = self.dataset.sample(from_dataset), super().sample(size - from_dataset)
        pairs = zip(recorded.chunk(num_shards), own.chunk(num_shards), strict=True)
        mixed: TensorDict = torch.cat([part for pair in pairs for part in pair])
        return mixed

    def parts(self) -> dict[str, Part]:
        return super().parts() | {"dataset_sampling": Part(self.dataset_sampling, per_rank=True)}
