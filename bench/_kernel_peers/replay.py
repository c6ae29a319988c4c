"""Peers for prioritized replay: a search in running sums, and a tree in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench._kernel_peers.common import Call, Inputs, Make, import_peer, need_cpu
from kernels.sum_tree import first_leaf, priorities


def numpy_search(inputs: Inputs) -> Call:
    """cumsum of all priorities, and searchsorted: what needs no tree."""
    need_cpu(inputs["tree"])
    leaves, uniform = priorities(inputs["tree"]).numpy(), inputs["uniform"].numpy()

    def run() -> list[Tensor]:
        sums = np.cumsum(leaves, dtype=np.float64)
        index = np.searchsorted(sums, uniform * sums[-1], side="right")
        return [torch.from_numpy(index), torch.from_numpy(leaves[index] / sums[-1])]

    return run


def rllib_sample(inputs: Inputs) -> Call:
    """Its tree, asked for one sample at a time."""
    tree, masses = _rllib_tree(inputs["tree"]), inputs["uniform"].tolist()

    def run() -> list[Tensor]:
        total = tree.sum()
        index = [tree.find_prefixsum_idx(share * total) for share in masses]
        return [torch.tensor(index), torch.tensor([tree[i] / total for i in index])]

    return run


def rllib_update(inputs: Inputs) -> Call:
    """Its tree, updated one priority at a time."""
    tree = _rllib_tree(inputs["tree"])
    entries = list(zip(inputs["index"].tolist(), inputs["priority"].tolist(), strict=True))

    def results() -> list[Tensor]:
        return [torch.tensor(tree.value[: len(inputs["tree"])])]

    def run() -> Callable[[], list[Tensor]]:
        for index, priority in entries:
            tree[index] = priority
        return results

    return run


def _rllib_tree(ours: Tensor) -> Any:
    """Its tree with our priorities; both number their entries in the same way, and it stores all leaves."""
    need_cpu(ours)
    module = import_peer("ray.rllib.execution.segment_tree", "pip install 'ray[rllib]'")
    tree = module.SumSegmentTree(first_leaf(ours))
    tree.value[: len(ours)] = ours.tolist()
    return tree


PEERS: dict[str, dict[str, Make]] = {
    "sum_tree_sample": {"numpy cumsum and searchsorted": numpy_search, "rllib": rllib_sample},
    "sum_tree_update": {"rllib": rllib_update},
}
