"""Generalized advantage estimation on the CPU: one pass over the rollout, and one over its advantages."""

import torch
from torch import Tensor

from kernels.native import CpuKernel

ARGUMENTS = {
    "reward": "const float *",
    "value": "const float *",
    "next_value": "const float *",
    "terminated": "const bool *",
    "done": "const bool *",
    "mask": "const bool *",  # null: every entry counts
    "advantage": "float *",
    "value_target": "float *",
    "moments": "float *",
    "num_steps": "long long",
    "num_worlds": "long long",
    "gamma": "double",
    "decay": "double",
    "eps": "double",
    "normalizes": "long long",
}

_run = CpuKernel(
    ARGUMENTS,
    """
    // Worlds a block: long rows keep the prefetcher busy, and the block's advantages stay in a near cache.
    constexpr int BLOCK = 8192, NARROW = 64;
    const long long size = num_steps * num_worlds;
    const float g = (float)gamma, d = (float)decay;

    // One step of one world; `following` is the advantage of the step after it.
    const auto step = [=](long long i, float &following) {
        #pragma clang fp contract(fast)
        // Loaded and computed whether needed or not: a conditional load would not vectorize.
        const float bootstrap = g * next_value[i];
        const float delta = reward[i] + (terminated[i] ? 0.0f : bootstrap) - value[i];
        const float carried = delta + d * following;
        following = done[i] ? delta : carried;
        advantage[i] = following;
        value_target[i] = following + value[i];
    };
    // So few worlds that their advantages stay in registers, as many as `following` is long.
    const auto scan_few = [&](long long begin, auto &following) {
        for (long long t = num_steps - 1; t >= 0; --t) {
            #pragma clang loop vectorize(assume_safety)
            for (int n = 0; n < (int)(sizeof(following) / sizeof(float)); ++n)
                step(t * num_worlds + begin + n, following[n]);
        }
    };

    const auto all = [&](auto kept) {
        double count = 0.0, sum = 0.0, squares = 0.0;
        // Deviations from a value in their midst, the first row's mean: then squares lose no digits.
        float middle = 0.0f;
        const auto add = [&](float number, float first, float second) {
            count += number;
            sum += first;
            squares += second;
        };
        const auto gather = [&](long long begin, int width) {
            float number = 0.0f, first = 0.0f, second = 0.0f;
            if (count == 0.0) {
                #pragma clang loop vectorize(assume_safety)
                for (long long i = begin; i < begin + width; ++i) {
                    number += kept(i) ? 1.0f : 0.0f;
                    first += kept(i) ? advantage[i] : 0.0f;
                }
                middle = number > 0.0f && first - first == 0.0f ? first / number : 0.0f;
                number = first = 0.0f;
            }
            #pragma clang loop vectorize(assume_safety)
            for (long long i = begin; i < begin + width; ++i) {
                const float deviation = kept(i) ? advantage[i] - middle : 0.0f;
                number += kept(i) ? 1.0f : 0.0f;
                first += deviation;
                second += deviation * deviation;
            }
            add(number, first, second);
        };

        if (num_worlds <= NARROW) {
            float f16[16], f8[8], f4[4], f1[1];
            long long begin = 0;
            const auto each = [&](auto &following) {
                constexpr int width = sizeof(following) / sizeof(float);
                for (; begin + width <= num_worlds; begin += width) {
                    for (float &f : following)
                        f = 0.0f;
                    scan_few(begin, following);
                }
            };
            each(f16);
            each(f8);
            each(f4);
            each(f1);
            for (long long i = 0; i < size; i += BLOCK)
                gather(i, (int)wp::min((long long)BLOCK, size - i));
        } else {
            for (long long begin = 0; begin < num_worlds; begin += BLOCK) {
                const int width = (int)wp::min((long long)BLOCK, num_worlds - begin);
                alignas(64) float following[BLOCK];
                for (int n = 0; n < width; ++n)
                    following[n] = 0.0f;
                for (long long t = num_steps - 1; t >= 0; --t) {
                    const long long row = t * num_worlds + begin;
                    float number = 0.0f, first = 0.0f, second = 0.0f;
                    #pragma clang loop vectorize(assume_safety)
                    for (int n = 0; n < width; ++n) {
                        step(row + n, following[n]);
                        const float deviation = kept(row + n) ? following[n] - middle : 0.0f;
                        number += kept(row + n) ? 1.0f : 0.0f;
                        first += deviation;
                        second += deviation * deviation;
                    }
                    // The first row shows where the middle is, and is gathered once that is known.
                    if (count == 0.0)
                        gather(row, width);
                    else
                        add(number, first, second);
                }
            }
        }

        const double number = count > 1.0 ? count : 1.0;
        const double mean = middle + sum / number;
        const double spread = wp::max(squares - sum * sum / number, 0.0);
        const double scale = 1.0 / (sqrt(spread / (count > 2.0 ? count - 1.0 : 1.0)) + eps);
        moments[0] = (float)mean;
        moments[1] = (float)scale;
        moments[2] = (float)count;
        if (!normalizes)
            return;
        const float m = (float)mean, k = (float)scale;
        #pragma clang loop vectorize(assume_safety)
        for (long long i = 0; i < size; ++i) {
            const float normalized = (advantage[i] - m) * k;
            advantage[i] = kept(i) ? normalized : 0.0f;
        }
    };
    if (mask)
        all([=](long long i) { return mask[i]; });
    else
        all([](long long) { return true; });
""",
)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    normalize: bool,
    mask: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.gae.gae`; tensors `[T, N]` on the CPU, one thread. Half precision is widened first."""
    num_steps, num_worlds = reward.shape
    if reward.dtype is not torch.float32:
        reward, value, next_value = reward.float(), value.float(), next_value.float()
    reward, value, next_value = reward.contiguous(), value.contiguous(), next_value.contiguous()
    terminated, done = terminated.contiguous(), done.contiguous()
    mask = None if mask is None else mask.contiguous()
    # One allocation: freeing two that are each as large as the largest so far, malloc would hand the pages
    # back to the system, and the next call would spend most of its time on page faults.
    size = reward.numel()
    out = reward.new_empty(2 * size + 3)
    address = out.data_ptr()
    _run(
        reward.data_ptr(),
        value.data_ptr(),
        next_value.data_ptr(),
        terminated.data_ptr(),
        done.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        address,
        address + 4 * size,
        address + 8 * size,
        num_steps,
        num_worlds,
        gamma,
        gamma * lam,
        eps,
        normalize,
    )
    shape, strides = (num_steps, num_worlds), (num_worlds, 1)
    return out.as_strided(shape, strides), out.as_strided(shape, strides, size), out[2 * size :]
