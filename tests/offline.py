"""What tests of offline learning share: a small dataset of the toy env, and algorithms that read it."""

import numpy as np
import torch

from pi_incubator.config import ExperimentConfig
from pi_incubator.data.datasets.layout import Episode, manifest_of, shard_tensors, write_manifest, write_shard
from tests.envs import StillEnv
from tests.learning import make_algorithm
from tests.off_policy import SPEC, B


def make_episode(length, seed=0, ends="truncated", spec=SPEC):
    """Random steps of an env; `ends` is `terminated`, `truncated`, or None where the end was not recorded."""
    random = np.random.default_rng(seed)
    last = np.arange(length) == length - 1
    return Episode(
        {
            group: random.normal(2.0, 3.0, (length + 1, width)).astype(np.float32)
            for group, width in spec.obs_dims.items()
        },
        random.uniform(spec.action_low, spec.action_high, (length, spec.action_dim)).astype(np.float32),
        random.normal(size=length).astype(np.float32),
        last & (ends == "terminated"),
        last & (ends == "truncated"),
        np.ones(length, bool),
    )


def write_dataset(folder, episodes, spec=SPEC):
    """Write `episodes` as one shard; gives the folder."""
    write_manifest(manifest_of(spec), folder)
    write_shard(folder, "toy-0", 0, shard_tensors(list(episodes)))
    return folder


def make_offline(folder, algorithm, **sections):
    """The algorithm of these settings on a dataset and four worlds in which nothing happens."""
    torch.manual_seed(0)
    has_worlds = sections.get("training", {}).get("total_steps", 0) > 0
    sizes = {"batch_size": B} | ({"buffer_size": 1000} if has_worlds else {})
    cfg = {
        "env": {"num_envs": 4},
        "network": {"hidden_sizes": [8]},
        "algorithm": sizes | algorithm,
        "training": {"total_steps": 0},
        "dataset": {"path": str(folder)},
    }
    return make_algorithm(ExperimentConfig.model_validate(cfg | sections), StillEnv(SPEC))
