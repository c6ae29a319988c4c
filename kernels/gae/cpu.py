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
        double count = 0.0, mean = 0.0, squares = 0.0;  // squares of deviations from the mean
        // Rows are summed as deviations from a value in their midst, so that squares lose no digits, and
        // merged in double (Chan, Golub and LeVeque 1983).
        float middle = 0.0f;
        const auto merge = [&](double number, double first, double second) {
            if (number == 0.0)
                return;
            const double offset = first / number, delta = middle + offset - mean, total = count + number;
            squares += second - first * offset + delta * delta * count * number / total;
            mean += delta * number / total;
            count = total;
        };
        const auto sum_up = [&](long long begin, int width, float &number, float &first, float &second) {
            float n = 0.0f, f = 0.0f, s = 0.0f;
            #pragma clang loop vectorize(assume_safety)
            for (long long i = begin; i < begin + width; ++i) {
                const float deviation = kept(i) ? advantage[i] - middle : 0.0f;
                n += kept(i) ? 1.0f : 0.0f;
                f += deviation;
                s += deviation * deviation;
            }
            number = n, first = f, second = s;
        };
        // Where nearly all of the squares is that the middle is not theirs, a row is summed around its own.
        const auto add = [&](long long begin, int width, float number, float first, float second) {
            for (int again = 0; again < 3 && number > 0.0f; ++again) {
                const float offset = first / number;
                if (first * offset <= 0.9f * second)
                    break;
                middle = middle + offset - (middle + offset) == 0.0f ? middle + offset : 0.0f;
                sum_up(begin, width, number, first, second);
            }
            merge(number, first, second);
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
            for (long long i = 0; i < size; i += BLOCK) {
                const int width = (int)wp::min((long long)BLOCK, size - i);
                float number, first, second;
                sum_up(i, width, number, first, second);
                add(i, width, number, first, second);
            }
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
                    add(row, width, number, first, second);
                }
            }
        }

        const double scale = 1.0 / (sqrt(wp::max(squares, 0.0) / (count > 2.0 ? count - 1.0 : 1.0)) + eps);
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
