"""Peers for prioritized replay: a search in running sums, and a tree in Python.

Their indices are compared with ours, their probabilities are not: at a border between two priorities rounding
may choose the neighbour, whose priority is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench._kernel_peers.common import Call, Inputs, Make, import_peer, need_cpu
from kernels.sum_tree import make, priorities, update


def numpy_search(inputs: Inputs) -> Call:
    """cumsum of all priorities, and searchsorted: what needs no tree."""
    need_cpu(inputs["tree"])
    leaves, uniform = priorities(inputs["tree"]).numpy(), inputs["uniform"].numpy()

    def run() -> list[Tensor]:
        sums = np.cumsum(leaves, dtype=np.float64)
        index = np.searchsorted(sums, uniform * sums[-1], side="right")
        torch.from_numpy(leaves[index] / sums[-1])
        return [torch.from_numpy(index)]

    return run


def rllib_sample(inputs: Inputs) -> Call:
    """Its tree, asked for one sample at a time."""
    tree, masses = _rllib_tree(inputs["tree"]), inputs["uniform"].tolist()

    def run() -> list[Tensor]:
        total = tree.sum()
        index = [tree.find_prefixsum_idx(share * total) for share in masses]
        torch.tensor([tree[i] / total for i in index])
        return [torch.tensor(index)]

    return run


def rllib_update(inputs: Inputs) -> Call:
    """Its tree, updated one priority at a time."""
    tree, capacity = _rllib_tree(inputs["tree"]), len(priorities(inputs["tree"]))
    entries = list(zip(inputs["index"].tolist(), inputs["priority"].tolist(), strict=True))

    def results() -> list[Tensor]:
        ours = make(capacity)
        update(ours, torch.arange(capacity), torch.tensor(tree.value[tree.capacity :][:capacity]))
        return [ours]

    def run() -> Callable[[], list[Tensor]]:
        for index, priority in entries:
            tree[index] = priority
        return results

    return run


def _rllib_tree(ours: Tensor) -> Any:
    """Its binary tree with our priorities, and sums in float32 like ours."""
    need_cpu(ours)
    module = import_peer("ray.rllib.execution.segment_tree", "pip install 'ray[rllib]'")
    leaves = priorities(ours)
    tree = module.SumSegmentTree(1 << (len(leaves) - 1).bit_length())
    level = torch.nn.functional.pad(leaves, (0, tree.capacity - len(leaves)))
    while len(level) > 1:
        tree.value[len(level) : 2 * len(level)] = level.tolist()
        level = level[::2] + level[1::2]
    tree.value[1] = level.item()
    return tree


PEERS: dict[str, dict[str, Make]] = {
    "sum_tree_sample": {"numpy cumsum and searchsorted": numpy_search, "rllib": rllib_sample},
    "sum_tree_update": {"rllib": rllib_update},
}
