"""The sum tree on the CPU: a batch moves level by level, so that its cache misses overlap.

Microseconds a batch of B of 1,000,000 priorities, medians on two busy cores of an x86 server with AVX-512,
one thread, indices and numbers new every time:

                                        B = 256    B = 4096
    update                                   13          50
    sample                             52 to 58  330 to 440
    update, the reference                   460        1550
    sample, the reference                   680        1800
    torch's cumsum and searchsorted  850 to 940        1400
    torch.multinomial                       670        1250
    RLlib's tree in Python, update         1400       22000
    RLlib's tree in Python, sample         3400       57000

`kernels.sum_tree.minimum` takes 770.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.native import CpuKernel
from kernels.sum_tree import first_leaf, make_outputs
from kernels.sum_tree.reference import refuse_sample, refuse_update

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
    """
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
    // A last leaf without a neighbour.
    if (length % 2)
        tree[length / 2] = tree[length - 1];
    int height = 1;
    for (long long width = first_leaf / 2; width > 0; width /= 2, ++height) {
        if (width > size)
            for (long long b = 0; b < size; ++b) {
                const long long n = (first_leaf + index[b]) >> height;
                if (2 * n + 1 < length)
                    tree[n] = tree[2 * n] + tree[2 * n + 1];
            }
        else {
            // Fewer entries than changes: all of them, in the order of memory, and vectorized.
            const long long end = wp::min(2 * width, length / 2);
            #pragma clang loop vectorize(assume_safety)
            for (long long n = width; n < end; ++n)
                tree[n] = tree[2 * n] + tree[2 * n + 1];
        }
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
        "length": "int",
        "first_leaf": "int",
        "size": "long long",
    },
    """
    constexpr int BLOCK = 64;
    const float total = tree[1];
    for (*refused = 0; *refused < size; ++*refused)
        if (!(uniform[*refused] >= 0.0 && uniform[*refused] <= 1.0 && total > 0.0f))
            return;
    *refused = -1;
    for (long long begin = 0; begin < size; begin += BLOCK) {
        const int width = wp::min((long long)BLOCK, size - begin);
        double mass[BLOCK];
        int entry[BLOCK];
        for (int b = 0; b < width; ++b) {
            mass[b] = uniform[begin + b] * total;
            entry[b] = 1;
        }
        for (int level = 1; level < first_leaf; level *= 2) {
            #pragma clang loop vectorize(assume_safety)
            for (int b = 0; b < width; ++b) {
                const int child = 2 * entry[b];
                const bool paired = child + 1 < length;
                const float left = tree[child], right = tree[paired ? child + 1 : child];
                // Where sums were rounded, the mass alone could lead into a subtree of zeros.
                const bool turn_right = paired & (right > 0.0f) & ((left == 0.0f) | (mass[b] >= left));
                mass[b] -= (double)turn_right * left;
                entry[b] = child + turn_right;
            }
        }
        for (int b = 0; b < width; ++b) {
            index[begin + b] = entry[b] - first_leaf;
            probability[begin + b] = tree[entry[b]] / total;
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
