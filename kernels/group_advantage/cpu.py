"""Advantages relative to a group on the CPU: a Warp kernel that takes group after group, in float64."""

from __future__ import annotations

import torch
import warp as wp
from torch import Tensor

from kernels.warp_cpu import CpuLaunch


@wp.func_native("""
    const float *r = (const float *)reward;
    const bool *m = (const bool *)mask;
    const long long *id = (const long long *)ids, *world = (const long long *)order;
    float *y = (float *)out;

    const auto for_each = [=](int begin, int end, auto use) {
        for (int t = 0; t < num_steps; ++t)
            for (int n = begin; n < end; ++n) {
                const long long i = (long long)t * num_worlds + (world ? world[n] : n);
                use(i, !m || m[i]);
            }
    };
    int end = 0;
    for (int begin = 0; begin < num_worlds; begin = end) {
        for (end = begin + (id ? 1 : size); id && end < num_worlds && id[end] == id[begin];)
            ++end;
        // In float64 the sum of equal rewards, and so their mean, is exact.
        double count = 0.0, sum = 0.0, squares = 0.0;
        for_each(begin, end, [&](long long i, bool kept) {
            count += kept ? 1.0 : 0.0;
            sum += kept ? r[i] : 0.0;
        });
        const double mean = sum / (count > 1.0 ? count : 1.0);
        for_each(begin, end, [&](long long i, bool kept) {
            const double deviation = kept ? r[i] - mean : 0.0;
            squares += deviation * deviation;
        });
        const double scale = 1.0 / (sqrt(squares / (count > 2.0 ? count - 1.0 : 1.0)) + eps);
        for_each(begin, end, [&](long long i, bool kept) {
            y[i] = kept ? (float)((r[i] - mean) * scale) : 0.0f;
        });
    }
""")
def _groups(
    reward: wp.uint64,
    mask: wp.uint64,
    ids: wp.uint64,
    order: wp.uint64,
    out: wp.uint64,
    num_steps: int,
    num_worlds: int,
    size: int,
    eps: float,
) -> None: ...


@wp.kernel(enable_backward=False, module="unique")
def _groups_kernel(
    reward: wp.uint64,
    mask: wp.uint64,
    ids: wp.uint64,
    order: wp.uint64,
    out: wp.uint64,
    num_steps: int,
    num_worlds: int,
    size: int,
    eps: float,
) -> None:
    _groups(reward, mask, ids, order, out, num_steps, num_worlds, size, eps)


_launch = CpuLaunch(_groups_kernel)


def group_advantage(
    reward: Tensor, ids: Tensor | None, order: Tensor | None, size: int, mask: Tensor | None, eps: float
) -> Tensor:
    """See `kernels.group_advantage.reference`; contiguous tensors on the CPU, one thread."""
    out = torch.empty_like(reward, dtype=torch.float32)
    tensors = (reward.float(), mask, None if ids is None else ids.long(), order, out)
    pointers = [0 if x is None else x.data_ptr() for x in tensors]
    _launch(1, *pointers, *reward.shape, size, eps)
    return out.to(reward.dtype)
