"""The sum tree on the CPU: a batch moves level by level, so that its cache misses overlap.

docs/kernels.md has what it takes beside its peers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.native import CpuKernel
from kernels.sum_tree import first_leaf, make_outputs
from kernels.sum_tree.reference import refuse_sample, refuse_update

_LEVELS = """
    constexpr int FAN_OUT = 16;
    const auto number_of_parents = [](long long n) { return (n + FAN_OUT - 1) / FAN_OUT; };
    const auto padded = [&](long long n) { return number_of_parents(n) * FAN_OUT; };
    const auto read = [&](const float *children, float *values) {
        if (children + FAN_OUT <= tree + length)
            for (int i = 0; i < FAN_OUT; ++i)
                values[i] = children[i];
        else  // the last leaves
            for (int i = 0; i < FAN_OUT; ++i)
                values[i] = children + i < tree + length ? children[i] : 0.0f;
    };
"""

_update = CpuKernel(
    {
        "tree": "float *",
        "index": "const long long *",
        "priority": "const float *",
        "refused": "long long *",  # the entry of the batch that does not fit, or -1
        "length": "long long",
        "first_leaf": "long long",
        "size": "long long",
    },
    _LEVELS
    + """
    const long long capacity = length - first_leaf;
    for (*refused = 0; *refused < size; ++*refused) {
        const long long i = index[*refused];
        const float p = priority[*refused];
        if (!(i >= 0 && i < capacity && p >= 0.0f && p < INFINITY))
            return;
    }
    *refused = -1;
    for (long long b = 0; b < size; ++b)
        tree[first_leaf + index[b]] = priority[b];
    float sums[FAN_OUT];
    long long below = first_leaf, num_below = capacity;
    for (int shift = 4; below > 0; shift += 4) {
        const long long num = number_of_parents(num_below), level = below - padded(num);
        // All entries of a level that has fewer than there are changes.
        for (long long b = 0; b < wp::min(num, size); ++b) {
            const long long n = num > size ? index[b] >> shift : b;
            read(tree + below + FAN_OUT * n, sums);
            for (int width = FAN_OUT / 2; width > 0; width /= 2)
                for (int i = 0; i < width; ++i)
                    sums[i] = sums[2 * i] + sums[2 * i + 1];
            tree[level + n] = sums[0];
        }
        below = level;
        num_below = num;
    }
    """,
)

_sample = CpuKernel(
    {
        "tree": "const float *",
        "uniform": "const double *",
        "index": "long long *",
        "probability": "float *",
        "refused": "long long *",  # the number that does not fit, or -1
        "length": "long long",
        "first_leaf": "long long",
        "size": "long long",
    },
    _LEVELS
    + """
    constexpr int BLOCK = 64, MAX_LEVELS = 9;
    const float total = tree[0];
    for (*refused = 0; *refused < size; ++*refused)
        if (!(uniform[*refused] >= 0.0 && uniform[*refused] <= 1.0 && total > 0.0f))
            return;
    *refused = -1;
    long long levels[MAX_LEVELS];  // where they begin, from the leaves to the root
    int num_levels = 1;
    levels[0] = first_leaf;
    for (long long num = length - first_leaf; levels[num_levels - 1] > 0; ++num_levels) {
        num = number_of_parents(num);
        levels[num_levels] = levels[num_levels - 1] - padded(num);
    }
    for (long long begin = 0; begin < size; begin += BLOCK) {
        const int width = wp::min((long long)BLOCK, size - begin);
        double mass[BLOCK];
        long long entry[BLOCK];
        for (int b = 0; b < width; ++b) {
            mass[b] = uniform[begin + b] * total;
            entry[b] = 0;
        }
        for (int height = num_levels - 2; height >= 0; --height)
            for (int b = 0; b < width; ++b) {
                float values[FAN_OUT];
                double sums[FAN_OUT + 1];  // before each child, and behind the last one
                read(tree + levels[height] + FAN_OUT * entry[b], values);
                sums[0] = 0.0;
                for (int i = 0; i < FAN_OUT; ++i)
                    sums[i + 1] = sums[i] + values[i];
                int child = 0, last = 0;
                for (int i = 0; i < FAN_OUT; ++i) {
                    child += mass[b] >= sums[i + 1];
                    last = values[i] > 0.0f ? i : last;
                }
                // Where sums were rounded, the mass alone could lead behind the last child above zero.
                child = wp::min(child, last);
                mass[b] -= sums[child];
                entry[b] = FAN_OUT * entry[b] + child;
                if (height > 0)
                    __builtin_prefetch(tree + levels[height - 1] + FAN_OUT * entry[b]);
            }
        for (int b = 0; b < width; ++b) {
            index[begin + b] = entry[b];
            probability[begin + b] = tree[first_leaf + entry[b]] / total;
        }
    }
    """,
)


def update(tree: Tensor, index: Tensor, priority: Tensor) -> None:
    """See `kernels.sum_tree.update`; contiguous tensors on the CPU, one thread."""
    refused = torch.empty(1, dtype=torch.int64)
    pointers = [x.data_ptr() for x in (tree, index, priority, refused)]
    _update(*pointers, len(tree), first_leaf(tree), len(index))
    if (b := int(refused)) >= 0:
        refuse_update(index, priority, len(tree) - first_leaf(tree), b)


def sample(tree: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.sum_tree.sample`; contiguous tensors on the CPU, one thread."""
    index, probability = make_outputs(uniform)
    wide = uniform.double()
    refused = torch.empty(1, dtype=torch.int64)
    pointers = [x.data_ptr() for x in (tree, wide, index, probability, refused)]
    _sample(*pointers, len(tree), first_leaf(tree), len(uniform))
    if (b := int(refused)) >= 0:
        refuse_sample(tree, uniform, b)
    return index, probability
