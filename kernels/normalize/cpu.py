"""Normalization on the CPU, in float64.

Advantages take two passes, and one that writes. Observations are read from memory once: a chunk of rows is
normalized, and adds to the moments, while it is in the cache.

Nanoseconds an element, medians on two busy cores of an x86 server with AVX-512. Of advantages at [T, N]:

                              24×4096  128×8192  16×32768  2048×8  64×64
    this kernel, one thread       0.5       0.4       0.4     0.8    2.3
    the same with a mask          0.5       0.4       0.4     0.9    2.5
    (a - a.mean()) / a.std()      0.8       0.6       0.7     2.0    4.6
    the reference                 2.2       1.5       1.9     5.5     15

Of observations at [N, D], one thread:

                              4096×48  8192×128  32768×16  98304×1  64×64
    running_normalize             0.4       0.3       0.4      0.4    3.1
    the same with a mask          0.6       0.4       0.7      0.5    4.3
    frozen                        0.2       0.1       0.1      0.2    2.8
    gather_moments                0.2       0.2       0.2      0.3    2.0
    mean, var, scale, clamp         5        10         5      0.9    7.9
    the reference                  10        27        16      3.7     19
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.native import CpuKernel

# Numbers that are next to each other in one loop, at least.
LANES = 128

_normalize_advantage = CpuKernel(
    {
        "advantage": "const float *",
        "mask": "const bool *",  # null: every entry counts
        "out": "float *",
        "size": "long long",
        "eps": "double",
    },
    """
    // Instantiated once with a mask and once without: a test in the loop would keep it from vectorizing.
    const auto normalize = [=](auto kept) {
        double count = 0.0, sum = 0.0, squares = 0.0;
        #pragma clang loop vectorize(assume_safety)
        for (long long i = 0; i < size; ++i) {
            const float a = advantage[i];
            count += kept(i) ? 1.0 : 0.0;
            sum += kept(i) ? a : 0.0;
        }
        const double mean = sum / (count > 1.0 ? count : 1.0);
        #pragma clang loop vectorize(assume_safety)
        for (long long i = 0; i < size; ++i) {
            const double deviation = advantage[i] - mean;
            squares += kept(i) ? deviation * deviation : 0.0;
        }
        const double scale = 1.0 / (sqrt(squares / (count > 2.0 ? count - 1.0 : 1.0)) + eps);
        #pragma clang loop vectorize(assume_safety)
        for (long long i = 0; i < size; ++i) {
            const float normalized = (float)((advantage[i] - mean) * scale);
            out[i] = kept(i) ? normalized : 0.0f;
        }
    };
    if (mask)
        normalize([=](long long i) { return mask[i]; });
    else
        normalize([](long long) { return true; });
    """,
)

_running = CpuKernel(
    {
        "observation": "const float *",
        "mask": "const bool *",  # [N, D], null: every row counts
        "moments": "double *",  # [3, D]
        "scratch": "double *",  # [8, lanes]
        "out": "float *",  # null: nothing is normalized
        "size": "long long",
        "width": "int",
        "lanes": "int",  # a multiple of the width: of narrow rows several are one, to be vectorized
        "update": "int",
        "clip": "double",
        "min_std": "double",
    },
    """
    double *count = scratch, *mean = count + lanes, *squares = mean + lanes;  // of a chunk
    double *all_count = squares + lanes, *all_mean = all_count + lanes, *all_squares = all_mean + lanes;
    double *center = all_squares + lanes, *scale = center + lanes;
    for (int l = 0; l < lanes; ++l) {
        const int d = l % width;
        const double n = moments[d], std = sqrt(moments[2 * width + d] / (n > 1.0 ? n : 1.0));
        center[l] = moments[width + d];
        scale[l] = n > 0.0 ? 1.0 / (std > min_std || std != std ? std : min_std) : 1.0;
        all_count[l] = all_mean[l] = all_squares[l] = 0.0;
    }
    // Moments a take in moments b (Chan, Golub and LeVeque 1983, eq. 2.1).
    const auto merge = [](double &n_a, double &mean_a, double &squares_a, double n_b, double mean_b,
                          double squares_b) {
        const double n = n_a + n_b, shift = mean_b - mean_a, share = n_b / (n > 1.0 ? n : 1.0);
        squares_a += squares_b + shift * shift * n_a * share;
        mean_a += shift * share;
        n_a = n;
    };
    // A chunk stays in the cache while it is read three times.
    const long long chunk = (long long)wp::max(16, 4096 / lanes) * lanes;
    // Instantiated once with a mask and once without: a test in the loop would keep it from vectorizing.
    const auto visit = [=](auto kept) {
        for (long long begin = 0; begin < size; begin += chunk) {
            const auto each = [=](auto use) {
                for (long long i = begin; i < wp::min(begin + chunk, size); i += lanes) {
                    const int end = wp::min((long long)lanes, size - i);
                    #pragma clang loop vectorize(assume_safety)
                    for (int l = 0; l < end; ++l)
                        use(i + l, l);
                }
            };
            if (update) {
                for (int l = 0; l < lanes; ++l)
                    count[l] = mean[l] = squares[l] = 0.0;
                each([=](long long i, int l) {
                    count[l] += kept(i) ? 1.0 : 0.0;
                    mean[l] += kept(i) ? (double)observation[i] : 0.0;
                });
                for (int l = 0; l < lanes; ++l)
                    mean[l] /= count[l] > 1.0 ? count[l] : 1.0;
                each([=](long long i, int l) {
                    const double deviation = observation[i] - mean[l];
                    squares[l] += kept(i) ? deviation * deviation : 0.0;
                });
                for (int l = 0; l < lanes; ++l)
                    merge(all_count[l], all_mean[l], all_squares[l], count[l], mean[l], squares[l]);
            }
            if (out)
                each([=](long long i, int l) {
                    const double z = (observation[i] - center[l]) * scale[l];
                    out[i] = (float)(z > clip ? clip : z < -clip ? -clip : z);
                });
        }
    };
    if (mask)
        visit([=](long long i) { return mask[i]; });
    else
        visit([](long long) { return true; });
    if (update)
        for (int l = 0; l < lanes; ++l) {
            double *m = moments + l % width;
            merge(m[0], m[width], m[2 * width], all_count[l], all_mean[l], all_squares[l]);
        }
    """,
)


def normalize_advantage(advantage: Tensor, eps: float, mask: Tensor | None) -> Tensor:
    """See `kernels.normalize.normalize_advantage`; contiguous float32 tensors on the CPU, one thread."""
    out = torch.empty_like(advantage)
    mask_pointer = 0 if mask is None else mask.data_ptr()
    _normalize_advantage(advantage.data_ptr(), mask_pointer, out.data_ptr(), advantage.numel(), eps)
    return out


def running_normalize(
    observation: Tensor, moments: Tensor, update: bool, mask: Tensor | None, clip: float, min_std: float
) -> Tensor:
    """See `kernels.normalize.running_normalize`; contiguous `[N, D]` on the CPU, one thread."""
    out = torch.empty_like(observation, dtype=torch.float32)
    _run(observation, moments, out, update, mask, clip, min_std)
    return out.to(observation.dtype)


def gather_moments(observation: Tensor, moments: Tensor, mask: Tensor | None) -> None:
    """See `kernels.normalize.gather_moments`; contiguous `[N, D]` on the CPU, one thread."""
    _run(observation, moments, None, True, mask, 1.0, 1.0)


def _run(
    observation: Tensor,
    moments: Tensor,
    out: Tensor | None,
    update: bool,
    mask: Tensor | None,
    clip: float,
    min_std: float,
) -> None:
    num_rows, width = observation.shape
    kept = mask[:, None].expand(num_rows, width).contiguous() if update and mask is not None else None
    lanes = width * max(1, min(LANES // width, num_rows))
    scratch = torch.empty(8, lanes, dtype=torch.float64)
    tensors = (observation.float(), kept, moments, scratch, out)
    pointers = [0 if x is None else x.data_ptr() for x in tensors]
    _running(*pointers, observation.numel(), width, lanes, update, clip, min_std)
