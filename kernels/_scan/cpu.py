"""The recursion behind every return on the CPU: the inner loop over worlds is vectorized.

Nanoseconds an element at [T, N], medians on two busy cores of an x86 server with AVX-512, one thread:

                                 24×4096  128×8192  16×32768  2048×8  64×64
    discounted_return                0.5       0.4       0.3     2.1    6.1
    td_lambda                        0.5       0.4       0.3     2.4    6.2
    lambda_return                    0.5       0.4       0.3     2.3    6.0
    lambda_return and its gradient   3.4       3.1       2.6      15     53
    vtrace                           1.7       1.9       1.6     5.2     12
    td_lambda, the reference         8.5       6.4       3.6    2945    350
    vtrace, the reference             20        14       9.2    6093    805
"""

import torch
from torch import Tensor

from kernels._scan import outputs
from kernels.native import CpuKernel

SIZES = {"num_steps": "int", "num_worlds": "int"}
# Worlds a block: long rows keep the prefetcher busy, and what the block carries along stays in the L1 cache.
# The flags and the discount are loaded whether needed or not: a conditional load would not vectorize.
BLOCK = "constexpr int BLOCK = 2048;"

# A pointer is null where the kernel does without.
_scan = CpuKernel(
    {
        "reward": "const float *",
        "ratio": "const float *",
        "value": "const float *",
        "next_value": "const float *",
        "discount": "const float *",
        "terminated": "const bool *",
        "done": "const bool *",
        "advantage": "float *",
        "target": "float *",
        **SIZES,
        "gamma": "float",
        "lam": "float",
        "rho_clip": "float",
        "c_clip": "float",
    },
    BLOCK
    + """
    const bool monte_carlo = lam == 1.0f;

    // target[i] = step(i, what follows it).
    const auto scan = [=](auto step) {
        for (int begin = 0; begin < num_worlds; begin += BLOCK) {
            const int width = wp::min(BLOCK, num_worlds - begin);
            float following[BLOCK];
            for (int n = 0; n < width; ++n)
                following[n] = next_value[(long long)(num_steps - 1) * num_worlds + begin + n];
            for (int t = num_steps - 1; t >= 0; --t) {
                const long long row = (long long)t * num_worlds + begin;
                #pragma clang loop vectorize(assume_safety)
                for (int n = 0; n < width; ++n)
                    target[row + n] = following[n] = step(row + n, following[n]);
            }
        }
    };
    const auto mix = [=](float own, float following) {
        const float mixed = own + lam * (following - own);
        return monte_carlo ? following : mixed;
    };
    if (discount && terminated)
        scan([=](long long i, float following) {
            const float future = discount[i] * mix(next_value[i], following);
            return reward[i] + (terminated[i] ? 0.0f : future);
        });
    else if (discount)
        scan([=](long long i, float following) {
            return reward[i] + discount[i] * mix(next_value[i], following);
        });
    else if (!ratio)
        scan([=](long long i, float following) {
            const float future = gamma * mix(next_value[i], done[i] ? next_value[i] : following);
            return reward[i] + (terminated[i] ? 0.0f : future);
        });
    else
        scan([=](long long i, float following) {
            const float weight = ratio[i];
            const float rho = weight > rho_clip ? rho_clip : weight;
            const float c = weight > c_clip ? c_clip : weight;
            const float discounted_value = gamma * next_value[i];
            const float discounted = done[i] ? discounted_value : gamma * following;
            const float bootstrap = terminated[i] ? 0.0f : discounted_value;
            const float future = terminated[i] ? 0.0f : discounted;
            advantage[i] = rho * (reward[i] + future - value[i]);
            return value[i] + rho * (reward[i] + bootstrap - value[i]) + lam * c * (future - bootstrap);
        });
    """,
)

_backward = CpuKernel(
    {
        "gradient": "const float *",
        "target": "const float *",
        "next_value": "const float *",
        "discount": "const float *",
        "terminated": "const bool *",
        "done": "const bool *",
        "by_reward": "float *",
        "by_value": "float *",
        "by_discount": "float *",
        **SIZES,
        "gamma": "float",
        "lam": "float",
    },
    BLOCK
    + """
    const bool monte_carlo = lam == 1.0f;

    // step(i, whether it is the last one, its own gradient) returns what target[t + 1] hands on to target[t].
    const auto scan = [=](auto step) {
        for (int begin = 0; begin < num_worlds; begin += BLOCK) {
            const int width = wp::min(BLOCK, num_worlds - begin);
            float carried[BLOCK] = {};
            for (int t = 0; t < num_steps; ++t) {
                const long long row = (long long)t * num_worlds + begin;
                const bool last = t == num_steps - 1;
                #pragma clang loop vectorize(assume_safety)
                for (int n = 0; n < width; ++n) {
                    const float by_x = gradient[row + n] + carried[n];
                    by_reward[row + n] = by_x;
                    carried[n] = step(row + n, last, by_x);
                }
            }
        }
    };
    const auto share = [=](long long i, bool cut, float by_mixed) {
        by_value[i] = by_mixed * (cut ? 1.0f : 1.0f - lam);
        const float carried = lam * by_mixed;
        return cut ? 0.0f : carried;
    };
    const auto follows = [=](long long i, bool last) {
        const float following = last ? next_value[i] : target[i + (last ? 0 : num_worlds)];
        const float mixed = next_value[i] + lam * (following - next_value[i]);
        return monte_carlo ? following : mixed;
    };
    if (discount && terminated)
        scan([=](long long i, bool last, float by_x) {
            const float of_discount = by_x * follows(i, last), discounted = discount[i] * by_x;
            by_discount[i] = terminated[i] ? 0.0f : of_discount;
            return share(i, last, terminated[i] ? 0.0f : discounted);
        });
    else if (discount)
        scan([=](long long i, bool last, float by_x) {
            by_discount[i] = by_x * follows(i, last);
            return share(i, last, discount[i] * by_x);
        });
    else
        scan([=](long long i, bool last, float by_x) {
            const float discounted = gamma * by_x;
            return share(i, last | done[i], terminated[i] ? 0.0f : discounted);
        });
    """,
)


def returns(
    reward: Tensor,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
) -> Tensor:
    """See `kernels._scan.returns`; contiguous tensors on the CPU, one thread, float32 within."""
    target = outputs(reward, None, torch.float32)
    tensors = (reward, None, None, next_value, discount, terminated, done, None, target)
    _run(_scan, tensors, *reward.shape, gamma, lam, 0.0, 0.0)
    return target.to(reward.dtype)


def returns_backward(
    gradient: Tensor,
    target: Tensor | None,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
) -> Tensor:
    """See `kernels._scan._returns_backward`; contiguous tensors on the CPU."""
    out = outputs(gradient, 2 if discount is None else 3, torch.float32)
    by_discount = None if discount is None else out[2]
    tensors = (gradient, target, next_value, discount, terminated, done, out[0], out[1], by_discount)
    _run(_backward, tensors, *gradient.shape, gamma, lam)
    return out.to(gradient.dtype)


def vtrace(
    reward: Tensor,
    log_ratio: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    rho_clip: float,
    c_clip: float,
) -> Tensor:
    """See `kernels.vtrace.vtrace`; `[2, T, N]`, advantage and value target."""
    out = outputs(reward, 2, torch.float32)
    # torch's exponential is vectorized, that of the C library is not. A step reads its ratio before it writes
    # its advantage, so both can lie in one place.
    torch.exp(log_ratio.float(), out=out[0])
    tensors = (reward, out[0], value, next_value, None, terminated, done, out[0], out[1])
    _run(_scan, tensors, *reward.shape, gamma, lam, rho_clip, c_clip)
    return out.to(reward.dtype)


def _run(kernel: CpuKernel, tensors: tuple[Tensor | None, ...], *numbers: int | float) -> None:
    """Run on the tensors' pointers, null for None; half precision is widened, so outputs must not be."""
    widened = [x.float() if x is not None and x.is_floating_point() else x for x in tensors]
    kernel(*[0 if x is None else x.data_ptr() for x in widened], *numbers)
