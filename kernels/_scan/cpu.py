"""The recursion behind every return on the CPU: Warp kernels whose inner loop over worlds is vectorized.

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

from __future__ import annotations

import torch
import warp as wp
from torch import Tensor

from kernels._scan import outputs
from kernels.warp_cpu import CpuLaunch

# Worlds a block: long rows keep the prefetcher busy, and what the block carries along stays in the L1 cache.
BLOCK = 2048

# The flags and the discount are loaded whether needed or not: a conditional load would not vectorize.


@wp.func_native(f"""
    const float *r = (const float *)reward, *importance = (const float *)ratio;
    const float *v = (const float *)value, *next_v = (const float *)next_value;
    const float *d = (const float *)discount;
    const bool *ends = (const bool *)terminated, *cuts = (const bool *)done;
    float *out = (float *)advantage, *x = (float *)target;
    const bool monte_carlo = lam == 1.0f;

    // x[i] = step(i, what follows it).
    const auto scan = [=](auto step) {{
        const int begin = block * {BLOCK};
        const int width = wp::min({BLOCK}, num_worlds - begin);
        float following[{BLOCK}];
        for (int n = 0; n < width; ++n)
            following[n] = next_v[(long long)(num_steps - 1) * num_worlds + begin + n];
        for (int t = num_steps - 1; t >= 0; --t) {{
            const long long row = (long long)t * num_worlds + begin;
            #pragma clang loop vectorize(assume_safety)
            for (int n = 0; n < width; ++n)
                x[row + n] = following[n] = step(row + n, following[n]);
        }}
    }};
    const auto mix = [=](float own, float following) {{
        const float mixed = own + lam * (following - own);
        return monte_carlo ? following : mixed;
    }};
    if (d)
        scan([=](long long i, float following) {{ return r[i] + d[i] * mix(next_v[i], following); }});
    else if (!importance)
        scan([=](long long i, float following) {{
            const float future = gamma * mix(next_v[i], cuts[i] ? next_v[i] : following);
            return r[i] + (ends[i] ? 0.0f : future);
        }});
    else
        scan([=](long long i, float following) {{
            const float weight = importance[i];
            const float rho = weight > rho_clip ? rho_clip : weight;
            const float c = weight > c_clip ? c_clip : weight;
            const float discounted_value = gamma * next_v[i];
            const float discounted = cuts[i] ? discounted_value : gamma * following;
            const float bootstrap = ends[i] ? 0.0f : discounted_value;
            const float future = ends[i] ? 0.0f : discounted;
            out[i] = rho * (r[i] + future - v[i]);
            return v[i] + rho * (r[i] + bootstrap - v[i]) + lam * c * (future - bootstrap);
        }});
""")
def _scan(
    reward: wp.uint64,
    ratio: wp.uint64,
    value: wp.uint64,
    next_value: wp.uint64,
    discount: wp.uint64,
    terminated: wp.uint64,
    done: wp.uint64,
    advantage: wp.uint64,
    target: wp.uint64,
    num_steps: int,
    num_worlds: int,
    gamma: float,
    lam: float,
    rho_clip: float,
    c_clip: float,
    block: int,
) -> None: ...


@wp.kernel(enable_backward=False, module="unique")
def _scan_kernel(
    reward: wp.uint64,
    ratio: wp.uint64,
    value: wp.uint64,
    next_value: wp.uint64,
    discount: wp.uint64,
    terminated: wp.uint64,
    done: wp.uint64,
    advantage: wp.uint64,
    target: wp.uint64,
    num_steps: int,
    num_worlds: int,
    gamma: float,
    lam: float,
    rho_clip: float,
    c_clip: float,
) -> None:
    _scan(
        reward,
        ratio,
        value,
        next_value,
        discount,
        terminated,
        done,
        advantage,
        target,
        num_steps,
        num_worlds,
        gamma,
        lam,
        rho_clip,
        c_clip,
        wp.tid(),
    )


@wp.func_native(f"""
    const float *g = (const float *)gradient, *x = (const float *)target;
    const float *next_v = (const float *)next_value, *d = (const float *)discount;
    const bool *ends = (const bool *)terminated, *cuts = (const bool *)done;
    float *by_r = (float *)by_reward, *by_v = (float *)by_value, *by_d = (float *)by_discount;
    const bool monte_carlo = lam == 1.0f;

    // step(i, whether it is the last one, its own gradient), which returns what x[t + 1] hands on to x[t].
    const auto scan = [=](auto step) {{
        const int begin = block * {BLOCK};
        const int width = wp::min({BLOCK}, num_worlds - begin);
        float carried[{BLOCK}] = {{}};
        for (int t = 0; t < num_steps; ++t) {{
            const long long row = (long long)t * num_worlds + begin;
            const bool last = t == num_steps - 1;
            #pragma clang loop vectorize(assume_safety)
            for (int n = 0; n < width; ++n) {{
                const float by_x = g[row + n] + carried[n];
                by_r[row + n] = by_x;
                carried[n] = step(row + n, last, by_x);
            }}
        }}
    }};
    const auto share = [=](long long i, bool cut, float by_mixed) {{
        by_v[i] = by_mixed * (cut ? 1.0f : 1.0f - lam);
        const float carried = lam * by_mixed;
        return cut ? 0.0f : carried;
    }};
    if (d)
        scan([=](long long i, bool last, float by_x) {{
            const float following = last ? next_v[i] : x[i + (last ? 0 : num_worlds)];
            const float mixed = next_v[i] + lam * (following - next_v[i]);
            by_d[i] = by_x * (monte_carlo ? following : mixed);
            return share(i, last, d[i] * by_x);
        }});
    else
        scan([=](long long i, bool last, float by_x) {{
            const float discounted = gamma * by_x;
            return share(i, last | cuts[i], ends[i] ? 0.0f : discounted);
        }});
""")
def _backward(
    gradient: wp.uint64,
    target: wp.uint64,
    next_value: wp.uint64,
    discount: wp.uint64,
    terminated: wp.uint64,
    done: wp.uint64,
    by_reward: wp.uint64,
    by_value: wp.uint64,
    by_discount: wp.uint64,
    num_steps: int,
    num_worlds: int,
    gamma: float,
    lam: float,
    block: int,
) -> None: ...


@wp.kernel(enable_backward=False, module="unique")
def _backward_kernel(
    gradient: wp.uint64,
    target: wp.uint64,
    next_value: wp.uint64,
    discount: wp.uint64,
    terminated: wp.uint64,
    done: wp.uint64,
    by_reward: wp.uint64,
    by_value: wp.uint64,
    by_discount: wp.uint64,
    num_steps: int,
    num_worlds: int,
    gamma: float,
    lam: float,
) -> None:
    _backward(
        gradient,
        target,
        next_value,
        discount,
        terminated,
        done,
        by_reward,
        by_value,
        by_discount,
        num_steps,
        num_worlds,
        gamma,
        lam,
        wp.tid(),
    )


_launch_scan = CpuLaunch(_scan_kernel)
_launch_backward = CpuLaunch(_backward_kernel)


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
    _run(_launch_scan, tensors, *reward.shape, gamma, lam, 0.0, 0.0)
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
    _run(_launch_backward, tensors, *gradient.shape, gamma, lam)
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
    _run(_launch_scan, tensors, *reward.shape, gamma, lam, rho_clip, c_clip)
    return out.to(reward.dtype)


def _run(launch: CpuLaunch, tensors: tuple[Tensor | None, ...], *numbers: int | float) -> None:
    """Launch on the tensors' pointers, null for None; half precision is widened, so outputs must not be."""
    widened = [x.float() if x is not None and x.is_floating_point() else x for x in tensors]
    pointers = [0 if x is None else x.data_ptr() for x in widened]
    _num_steps, num_worlds, *_ = numbers
    launch(-(-int(num_worlds) // BLOCK), *pointers, *numbers)
