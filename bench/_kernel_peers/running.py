"""Peers for running moments: the same parallel update in numpy, of two libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench._kernel_peers.common import Call, Inputs, Make, import_peer, need_cpu

CLIP = 10.0


def running_mean_std(inputs: Inputs, module: str, fix: str) -> Call:
    """Normalized by the moments so far, as our kernel does, and then updated."""
    need_cpu(inputs["observation"])
    moments = import_peer(module, fix).RunningMeanStd()
    count, mean, squares = inputs["moments"].numpy()
    moments.count, moments.mean, moments.var = count[0], mean, squares / count
    observation = inputs["observation"].numpy()

    def results(normalized: np.ndarray) -> list[Tensor]:
        counts = np.full_like(moments.mean, moments.count)
        found = np.stack((counts, moments.mean, moments.var * moments.count))
        return [torch.from_numpy(normalized), torch.from_numpy(found)]

    def run() -> Callable[[], list[Tensor]]:
        deviation = (observation - moments.mean) / np.sqrt(moments.var + 1e-8)
        normalized = np.clip(deviation, -CLIP, CLIP).astype(np.float32)
        moments.update(observation)
        return partial(results, normalized)

    return run


PEERS: dict[str, dict[str, Make]] = {
    "running_normalize": {
        "stable-baselines3": partial(
            running_mean_std,
            module="stable_baselines3.common.running_mean_std",
            fix="pip install -e '.[peers]'",
        ),
        "gymnasium": partial(
            running_mean_std, module="gymnasium.wrappers.utils", fix="pip install gymnasium"
        ),
    }
}
