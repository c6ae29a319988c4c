"""The losses of PPO on the CPU: one pass over blocks of samples each way, one thread.

A block's log-probabilities are computed sample by sample, vectorized over its actions, and what follows from
them is vectorized over samples.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from kernels.native import EXP, CpuKernel
from kernels.ppo_loss.op import make_gradients, make_outputs
from kernels.ppo_loss.reference import HALF_LOG_2PI

# Samples a block: their log-probabilities and entropies stay in the L1 cache.
BLOCK = 256

_FORWARD_ARGUMENTS = {
    "policy": "const float *",
    "log_std": "const float *",
    "action": "const void *",
    "log_prob": "const float *",
    "advantage": "const float *",
    "value": "const float *",
    "old_value": "const float *",
    "value_target": "const float *",
    "advantage_mean": "const float *",
    "advantage_rstd": "const float *",
    "mask": "const bool *",
    "loss_objective": "float *",
    "loss_critic": "float *",
    "loss_entropy": "float *",
    "report": "float *",
    "saved": "float *",
    "num_rows": "long long",
    "width": "long long",
    "shared": "long long",
    "clip_epsilon": "double",
    "log_low": "double",
    "log_high": "double",
    "entropy_coeff": "double",
    "critic_coeff": "double",
    "smooth": "long long",
    "clips": "long long",
    "clip_value": "double",
}

_forward = CpuKernel(
    _FORWARD_ARGUMENTS,
    f"""
    {EXP}
    const double half_log_2pi = {HALF_LOG_2PI!r};
    const float low = log_low, high = log_high;
    const float low_ratio = 1.0 - clip_epsilon, high_ratio = 1.0 + clip_epsilon;
    const float shift = advantage_mean ? *advantage_mean : 0.0f;
    const float scale = advantage_rstd ? *advantage_rstd : 1.0f;
    const bool is_smooth = smooth, clips_value = clips;
    const float reach = clip_value;
    float *weight = saved, *slope = saved + num_rows, *log_norm = saved + 2 * num_rows;
    float *sample_entropy = saved + 3 * num_rows;
    float entropies[{BLOCK}];
    double new_log_prob[{BLOCK}]; // of which the old one is subtracted: float would leave few digits

    // What a standard deviation that all samples share gives is computed once.
    float *precision = nullptr;
    double log_det = 0.0;
    if (shared) {{
        precision = (float *)__builtin_alloca(width * sizeof(float));
        for (long long k = 0; k < width; ++k) {{
            precision[k] = exp_(-2.0f * log_std[k]);
            log_det += log_std[k];
        }}
    }}

    const auto gaussian_shared = [=](long long i, float &entropy) {{
        const float *m = policy + i * width, *a = (const float *)action + i * width;
        float squares = 0.0f;
        #pragma clang loop vectorize(assume_safety) vectorize_width(4) interleave_count(1)
        for (int k = 0; k < (int)width; ++k) {{
            const float deviation = a[k] - m[k];
            squares += deviation * deviation * precision[k];
        }}
        entropy = log_det + (half_log_2pi + 0.5) * width;
        return -0.5 * squares - (log_det + half_log_2pi * width);
    }};
    const auto gaussian = [=](long long i, float &entropy) {{
        const float *m = policy + i * width, *a = (const float *)action + i * width, *s = log_std + i * width;
        float squares = 0.0f, sum = 0.0f;
        #pragma clang loop vectorize(assume_safety) vectorize_width(4) interleave_count(1)
        for (int k = 0; k < (int)width; ++k) {{
            const float deviation = a[k] - m[k];
            squares += deviation * deviation * exp_(-2.0f * s[k]);
            sum += s[k];
        }}
        entropy = sum + (half_log_2pi + 0.5) * width;
        return -0.5 * squares - (sum + half_log_2pi * width);
    }};
    const auto categorical = [=](long long i, float &entropy) {{
        const float *x = policy + i * width;
        const long long chosen = ((const long long *)action)[i];
        float top = x[0], total = 0.0f, dot = 0.0f;
        for (int k = 1; k < (int)width; ++k)
            top = x[k] > top ? x[k] : top;
        #pragma clang loop vectorize(assume_safety) vectorize_width(4) interleave_count(1)
        for (int k = 0; k < (int)width; ++k) {{
            const float below = x[k] - top, e = exp_(below);
            total += e;
            dot += e == 0.0f ? 0.0f : e * below;
        }}
        const float log_total = log(total);
        log_norm[i] = top + log_total;
        sample_entropy[i] = entropy = log_total - dot / total;
        // An action that does not exist is read from nowhere.
        return chosen >= 0 && chosen < width ? (double)x[chosen] - top - log_total : __builtin_nan("");
    }};
    const auto distance = [=](float d) {{
        const float size = d < 0.0f ? -d : d;
        return is_smooth ? (size < 1.0f ? 0.5f * d * d : size - 0.5f) : d * d;
    }};

    const auto run = [&](auto kept, auto density) {{
        double count = 0, objective = 0, critic = 0, entropy = 0, divergence = 0, outside = 0, ratios = 0;
        for (long long begin = 0; begin < num_rows; begin += {BLOCK}) {{
            const int size = num_rows - begin < {BLOCK} ? num_rows - begin : {BLOCK};
            for (int r = 0; r < size; ++r)
                new_log_prob[r] = density(begin + r, entropies[r]);
            // In float32 within a block, which vectorizes twice as wide, and in float64 from block to block.
            float n = 0, objectives = 0, critics = 0, chaos = 0, divergences = 0, outsides = 0, ratio_sum = 0;
            #pragma clang loop vectorize(assume_safety)
            for (int r = 0; r < size; ++r) {{
                const long long i = begin + r;
                const bool counts = kept(i);
                const float log_ratio = new_log_prob[r] - (double)log_prob[i], ratio = exp_(log_ratio);
                const bool below = log_ratio < low, above = log_ratio > high;
                const float a = (advantage[i] - shift) * scale;
                const float gain = ratio * a, clipped = (below ? low_ratio : above ? high_ratio : ratio) * a;
                const bool binds = clipped < gain;
                weight[i] = counts && !binds ? -gain : 0.0f;

                const float v = value[i], target = value_target[i], old = old_value[i], error = v - target;
                const float moved = v - old, near = distance(error);
                const float far = distance(old + (moved > 0.0f ? reach : -reach) - target);
                const bool is_held = clips_value && !(moved <= reach && moved >= -reach);
                const float linear = error > 1.0f ? 1.0f : error < -1.0f ? -1.0f : error;
                const float steep = is_smooth ? linear : 2.0f * error;
                // At a tie torch.maximum gives each its half.
                const float share = far > near ? 0.0f : far == near ? 0.5f * steep : steep;
                slope[i] = counts ? (is_held ? share : steep) : 0.0f;

                n += counts ? 1.0f : 0.0f;
                objectives -= counts ? (binds ? clipped : gain) : 0.0f;
                critics += counts ? (is_held && !(far <= near) ? far : near) : 0.0f;
                chaos += counts ? entropies[r] : 0.0f;
                divergences -= counts ? log_ratio : 0.0f;
                outsides += counts && !(log_ratio >= low && log_ratio <= high) ? 1.0f : 0.0f;
                ratio_sum += counts ? ratio : 0.0f;
            }}
            count += n, objective += objectives, critic += critics, entropy += chaos;
            divergence += divergences, outside += outsides, ratios += ratio_sum;
        }}
        const double share = 1.0 / (count > 1.0 ? count : 1.0);
        *loss_objective = objective * share;
        *loss_critic = critic_coeff * critic * share;
        *loss_entropy = -entropy_coeff * entropy * share;
        report[0] = entropy * share;
        report[1] = divergence * share;
        report[2] = outside * share;
        report[3] = ratios * share;
        report[4] = count;
    }};
    const auto of = [&](auto density) {{
        // Instantiated once with a mask and once without: a test in the loop would keep it from vectorizing.
        if (mask)
            run([=](long long i) {{ return mask[i]; }}, density);
        else
            run([](long long) {{ return true; }}, density);
    }};
    if (!log_std)
        of(categorical);
    else if (shared)
        of(gaussian_shared);
    else
        of(gaussian);
""",
)


_BACKWARD_ARGUMENTS = {
    "policy": "const float *",
    "log_std": "const float *",
    "action": "const void *",
    "mask": "const bool *",
    "report": "const float *",
    "saved": "const float *",
    "grad_objective": "const float *",
    "grad_critic": "const float *",
    "grad_entropy": "const float *",
    "of_policy": "float *",
    "of_log_std": "float *",
    "of_value": "float *",
    "num_rows": "long long",
    "width": "long long",
    "shared": "long long",
    "entropy_coeff": "double",
    "critic_coeff": "double",
}

_backward = CpuKernel(
    _BACKWARD_ARGUMENTS,
    f"""
    {EXP}
    const float count = report[4], share = 1.0f / (count > 1.0f ? count : 1.0f);
    const float by_objective = grad_objective ? *grad_objective * share : 0.0f;
    const float by_critic = grad_critic ? *grad_critic * share * (float)critic_coeff : 0.0f;
    const float by_entropy = grad_entropy ? *grad_entropy * share * (float)entropy_coeff : 0.0f;
    const float *weight = saved, *slope = saved + num_rows, *log_norm = saved + 2 * num_rows;
    const float *sample_entropy = saved + 3 * num_rows;

    #pragma clang loop vectorize(assume_safety)
    for (long long i = 0; i < num_rows; ++i)
        of_value[i] = by_critic * slope[i];

    float *precision = nullptr;
    double *sum = nullptr;
    if (shared) {{
        precision = (float *)__builtin_alloca(width * sizeof(float));
        sum = (double *)__builtin_alloca(width * sizeof(double));
        for (long long k = 0; k < width; ++k) {{
            precision[k] = exp_(-2.0f * log_std[k]);
            sum[k] = 0.0;
        }}
    }}
    const auto clear = [=](float *out, float filling) {{
        for (int k = 0; k < (int)width; ++k)
            out[k] = filling;
    }};
    for (long long i = 0; i < num_rows; ++i) {{
        const float *x = policy + i * width;
        float *out = of_policy + i * width;
        const bool counts = mask ? mask[i] : true;
        const float w = weight[i] * by_objective;
        if (!log_std) {{
            if (!counts) {{
                clear(out, 0.0f);
                continue;
            }}
            const float norm = log_norm[i], entropy = sample_entropy[i];
            #pragma clang loop vectorize(assume_safety) vectorize_width(4) interleave_count(1)
            for (int k = 0; k < (int)width; ++k) {{
                const float log_p = x[k] - norm, p = exp_(log_p);
                const float rise = p == 0.0f ? 0.0f : by_entropy * p * (log_p + entropy);
                out[k] = rise - w * p;
            }}
            const long long chosen = ((const long long *)action)[i];
            if (chosen >= 0 && chosen < width)
                out[chosen] += w;
            continue;
        }}
        const float *a = (const float *)action + i * width, *s = log_std + (shared ? 0 : i * width);
        float *out_s = shared ? nullptr : of_log_std + i * width;
        if (weight[i] == 0.0f) {{ // hidden by the mask, or clipped
            clear(out, 0.0f);
            if (!shared)
                clear(out_s, counts ? -by_entropy : 0.0f);
        }} else if (shared) {{
            #pragma clang loop vectorize(assume_safety) vectorize_width(4) interleave_count(1)
            for (int k = 0; k < (int)width; ++k) {{
                const float deviation = a[k] - x[k], pull = deviation * precision[k];
                out[k] = w * pull;
                sum[k] += w * (deviation * pull - 1.0f);
            }}
        }} else {{
            #pragma clang loop vectorize(assume_safety) vectorize_width(4) interleave_count(1)
            for (int k = 0; k < (int)width; ++k) {{
                const float deviation = a[k] - x[k], pull = deviation * exp_(-2.0f * s[k]);
                out[k] = w * pull;
                out_s[k] = w * (deviation * pull - 1.0f) - by_entropy;
            }}
        }}
    }}
    if (shared)
        for (long long k = 0; k < width; ++k)
            of_log_std[k] = sum[k] - by_entropy * count;
""",
)


def forward(
    policy: Tensor,
    log_std: Tensor | None,
    action: Tensor,
    log_prob: Tensor,
    advantage: Tensor,
    value: Tensor,
    old_value: Tensor | None,
    value_target: Tensor,
    advantage_mean: Tensor | None,
    advantage_rstd: Tensor | None,
    mask: Tensor | None,
    clip_epsilon: float,
    entropy_coeff: float,
    critic_coeff: float,
    loss_critic_type: str,
    clip_value: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `kernels.ppo_loss.op.forward`; contiguous float32 tensors on the CPU, one thread."""
    outputs = make_outputs(policy, log_std)
    clips = clip_value is not None and old_value is not None
    tensors = (
        policy,
        log_std,
        action,
        log_prob,
        advantage,
        value,
        old_value if clips else value,
        value_target,
    )
    numbers = (
        *policy.shape,
        log_std is not None and log_std.ndim == 1,
        clip_epsilon,
        math.log1p(-clip_epsilon),
        math.log1p(clip_epsilon),
        entropy_coeff,
        critic_coeff,
        loss_critic_type == "smooth_l1",
        clips,
        clip_value or 0.0,
    )
    _run(_forward, (*tensors, advantage_mean, advantage_rstd, mask, *outputs), numbers)
    return outputs


def backward(
    policy: Tensor,
    log_std: Tensor | None,
    action: Tensor,
    value: Tensor,
    mask: Tensor | None,
    report: Tensor,
    saved: Tensor,
    grad_objective: Tensor | None,
    grad_critic: Tensor | None,
    grad_entropy: Tensor | None,
    entropy_coeff: float,
    critic_coeff: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.ppo_loss.op.backward`; contiguous float32 tensors on the CPU, one thread."""
    gradients = make_gradients(policy, log_std, value)
    tensors = (policy, log_std, action, mask, report, saved, grad_objective, grad_critic, grad_entropy)
    shared = log_std is not None and log_std.ndim == 1
    _run(_backward, (*tensors, *gradients), (*policy.shape, shared, entropy_coeff, critic_coeff))
    return gradients


def _run(kernel: CpuKernel, tensors: Sequence[Tensor | None], numbers: Sequence[float]) -> None:
    kernel(*[0 if tensor is None else tensor.data_ptr() for tensor in tensors], *numbers)
