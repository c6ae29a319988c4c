"""The losses of PPO on a GPU: one launch each way, whose last program to finish adds up what all have found.

Each program owns every n-th block of samples and writes its sums where no other does; a ticket tells the last
one that the others are through. It adds in a fixed order, so the result is the same bits every time. The
ticket counter is zeroed afresh for each launch, which keeps streams and captured graphs apart.
"""

# mypy: disable-error-code="no-untyped-def"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ppo_loss.op import make_gradients, make_outputs
from kernels.ppo_loss.reference import HALF_LOG_2PI

# Entries of mean or logits a block: 4 for each of 128 threads. With 8, some variants use the stack.
BLOCK = 512
NUM_WARPS = 4
# Enough programs to fill a GPU, few enough that adding up their sums is one load.
MAX_PROGRAMS = 1024

_HALF_LOG_2PI = tl.constexpr(HALF_LOG_2PI)


@triton.jit
def samples_of(block, mask_ptr, num_rows, ROWS: tl.constexpr):
    """A block's first sample, the numbers of all, which of them exist and which of these count."""
    first = tl.cast(block, tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    inside = row < num_rows
    kept = inside
    if mask_ptr is not None:
        kept = kept & tl.load(mask_ptr + row, mask=inside, other=0).to(tl.int1)
    return first, row, inside, kept


@triton.jit
def load_gaussian(
    policy_ptr, log_std_ptr, action_ptr, start, tile, column, there, width, SHARED: tl.constexpr
):
    """Logarithm and reciprocal of the standard deviation, and the deviation in units of it."""
    mean = tl.load(policy_ptr + start + tile, mask=there, other=0.0).to(tl.float32)
    action = tl.load(action_ptr + start + tile, mask=there, other=0.0).to(tl.float32)
    if SHARED:
        log_std = tl.load(log_std_ptr + column, mask=column < width, other=0.0)[None, :].to(tl.float32)
    else:
        log_std = tl.load(log_std_ptr + start + tile, mask=there, other=0.0).to(tl.float32)
    precision = tl.exp(-log_std)
    return log_std, precision, (action - mean) * precision


@triton.jit
def last_to_finish(counter_ptr):
    """Whether every other program has written what it found."""
    tl.debug_barrier()  # the writes of this program's other threads come before its ticket
    return tl.atomic_add(counter_ptr, 1, sem="acq_rel") == tl.num_programs(0) - 1


@triton.jit
def distance(error, SMOOTH: tl.constexpr):
    loss = error * error
    if SMOOTH:
        size = tl.abs(error)
        loss = tl.where(size < 1.0, 0.5 * loss, size - 0.5)
    return loss


@triton.jit
def add_up(partial_ptr, PROGRAMS: tl.constexpr):
    """Sum of one entry a program, past the L1 cache, which may hold what was there before."""
    p = tl.arange(0, PROGRAMS)
    return tl.sum(tl.load(partial_ptr + p, mask=p < tl.num_programs(0), other=0.0, cache_modifier=".cg"))


@triton.jit
def gaussian_policy(
    policy_ptr, log_std_ptr, action_ptr, start, tile, column, there, width, SHARED: tl.constexpr
):
    """Log-probability and entropy, `[ROWS]`."""
    log_std, _, z = load_gaussian(
        policy_ptr, log_std_ptr, action_ptr, start, tile, column, there, width, SHARED
    )
    terms = 0.5 * z * z + log_std + _HALF_LOG_2PI
    log_prob = -tl.sum(tl.where(there, terms, 0.0), 1)
    return log_prob, tl.sum(tl.where(there, log_std + (_HALF_LOG_2PI + 0.5), 0.0), 1)


@triton.jit
def categorical_policy(policy_ptr, action_ptr, start, tile, column, there, row, kept, width):
    """Log-probability, entropy and logsumexp of the logits, `[ROWS]`."""
    logits = tl.load(policy_ptr + start + tile, mask=there, other=0.0).to(tl.float32)
    logits = tl.where((column < width)[None, :], logits, float("-inf"))
    action = tl.load(action_ptr + row, mask=kept, other=0)
    highest = tl.max(logits, 1)
    below = logits - highest[:, None]
    unscaled = tl.exp(below)
    total = tl.sum(unscaled, 1)
    log_total = tl.log(total)
    entropy = log_total - tl.sum(tl.where(unscaled == 0.0, 0.0, unscaled * below), 1) / total
    chosen = tl.sum(tl.where(column[None, :] == action[:, None], below, 0.0), 1)
    exists = (action >= 0) & (action < width)
    return tl.where(exists, chosen - log_total, float("nan")), entropy, highest + log_total


@triton.jit
def load_advantage(advantage_ptr, mean_ptr, rstd_ptr, row, kept):
    advantage = tl.load(advantage_ptr + row, mask=kept, other=0.0).to(tl.float32)
    if mean_ptr is not None:
        shift = tl.load(mean_ptr).to(tl.float32)
        advantage = (advantage - shift) * tl.load(rstd_ptr).to(tl.float32)
    return advantage


@triton.jit
def value_loss(value_ptr, old_value_ptr, value_target_ptr, row, kept, clip_value, SMOOTH: tl.constexpr):
    """The loss and its derivative by the value, `[ROWS]`."""
    value = tl.load(value_ptr + row, mask=kept, other=0.0).to(tl.float32)
    value_target = tl.load(value_target_ptr + row, mask=kept, other=0.0).to(tl.float32)
    error = value - value_target
    loss = distance(error, SMOOTH)
    slope = 2.0 * error
    if SMOOTH:
        slope = tl.where(error > 1.0, 1.0, tl.where(error < -1.0, -1.0, error))
    if old_value_ptr is not None:
        old_value = tl.load(old_value_ptr + row, mask=kept, other=0.0).to(tl.float32)
        moved = value - old_value
        is_held = ((moved <= clip_value) & (moved >= -clip_value)) == 0
        held = old_value + tl.where(moved > 0.0, clip_value, -clip_value)
        far = distance(held - value_target, SMOOTH)
        # At a tie torch.maximum gives each its half.
        share = tl.where(far > loss, 0.0, tl.where(far == loss, 0.5 * slope, slope))
        slope = tl.where(is_held, share, slope)
        loss = tl.where(is_held & ((far <= loss) == 0), far, loss)
    return loss, slope


@triton.jit
def surrogates(log_ratio, advantage, log_low, log_high, low_ratio, high_ratio):
    """Ratio, what the objective gains by it, and what it gains where the ratio is clipped, `[ROWS]`."""
    ratio = tl.exp(log_ratio)
    clipped = tl.where(log_ratio > log_high, high_ratio, ratio)
    clipped = tl.where(log_ratio < log_low, low_ratio, clipped)
    return ratio, ratio * advantage, clipped * advantage


@triton.jit
def note_sums(partial_ptr, count, objective, critic, entropy, divergence, outside, ratios):
    """Write this program's sums, a row of all programs for each."""
    mine, num_programs = partial_ptr + tl.program_id(0), tl.num_programs(0)
    tl.store(mine, count)
    tl.store(mine + num_programs, objective)
    tl.store(mine + 2 * num_programs, critic)
    tl.store(mine + 3 * num_programs, entropy)
    tl.store(mine + 4 * num_programs, divergence)
    tl.store(mine + 5 * num_programs, outside)
    tl.store(mine + 6 * num_programs, ratios)


@triton.jit
def sum_of(kept, entries):
    return tl.sum(tl.where(kept, entries, 0.0))


@triton.jit
def finish(
    partial_ptr,
    loss_objective_ptr,
    loss_critic_ptr,
    loss_entropy_ptr,
    report_ptr,
    entropy_coeff,
    critic_coeff,
    PROGRAMS: tl.constexpr,
):
    """The results, of the sums that all programs have noted."""
    num_programs = tl.num_programs(0)
    count = add_up(partial_ptr, PROGRAMS)
    scale = 1.0 / tl.maximum(count, 1.0)
    tl.store(loss_objective_ptr, add_up(partial_ptr + num_programs, PROGRAMS) * scale)
    tl.store(loss_critic_ptr, add_up(partial_ptr + 2 * num_programs, PROGRAMS) * critic_coeff * scale)
    mean_entropy = add_up(partial_ptr + 3 * num_programs, PROGRAMS) * scale
    tl.store(loss_entropy_ptr, -entropy_coeff * mean_entropy)
    tl.store(report_ptr, mean_entropy)
    for i in tl.static_range(3):
        tl.store(report_ptr + 1 + i, add_up(partial_ptr + (4 + i) * num_programs, PROGRAMS) * scale)
    tl.store(report_ptr + 4, count)


@triton.jit
def forward_kernel(
    policy_ptr,
    log_std_ptr,
    action_ptr,
    log_prob_ptr,
    advantage_ptr,
    value_ptr,
    old_value_ptr,
    value_target_ptr,
    advantage_mean_ptr,
    advantage_rstd_ptr,
    mask_ptr,
    loss_objective_ptr,
    loss_critic_ptr,
    loss_entropy_ptr,
    report_ptr,
    saved_ptr,
    partial_ptr,
    counter_ptr,
    num_rows,
    width,
    log_low,
    log_high,
    low_ratio,
    high_ratio,
    entropy_coeff,
    critic_coeff,
    clip_value,
    SHARED: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)
    count, objective, critic, entropy, divergence, outside, ratios = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for block in range(program, tl.cdiv(num_rows, ROWS), num_programs):
        first, row, inside, kept = samples_of(block, mask_ptr, num_rows, ROWS)
        # A sample that does not count is not even loaded: its entries read as 0.
        there = kept[:, None] & (column < width)[None, :]
        # Counted from the first sample of the block, which 32 bits do for: wider ones take registers.
        tile, start = tl.arange(0, ROWS)[:, None] * width + column[None, :], first * width
        if log_std_ptr is not None:
            log_prob, sample_entropy = gaussian_policy(
                policy_ptr, log_std_ptr, action_ptr, start, tile, column, there, width, SHARED
            )
        else:
            log_prob, sample_entropy, norm = categorical_policy(
                policy_ptr, action_ptr, start, tile, column, there, row, kept, width
            )
            tl.store(saved_ptr + 2 * num_rows + row, norm, mask=inside)
            tl.store(saved_ptr + 3 * num_rows + row, sample_entropy, mask=inside)

        log_ratio = log_prob - tl.load(log_prob_ptr + row, mask=kept, other=0.0).to(tl.float32)
        advantage = load_advantage(advantage_ptr, advantage_mean_ptr, advantage_rstd_ptr, row, kept)
        ratio, gain, clipped = surrogates(log_ratio, advantage, log_low, log_high, low_ratio, high_ratio)
        binds = clipped < gain
        tl.store(saved_ptr + row, tl.where(kept & (binds == 0), -gain, 0.0), mask=inside)
        loss, slope = value_loss(value_ptr, old_value_ptr, value_target_ptr, row, kept, clip_value, SMOOTH)
        tl.store(saved_ptr + num_rows + row, tl.where(kept, slope, 0.0), mask=inside)

        count += tl.sum(kept.to(tl.float32))
        objective -= sum_of(kept, tl.where(binds, clipped, gain))
        critic += sum_of(kept, loss)
        entropy += sum_of(kept, sample_entropy)
        divergence -= sum_of(kept, log_ratio)
        within = (log_ratio >= log_low) & (log_ratio <= log_high)
        outside += tl.sum((kept & (within == 0)).to(tl.float32))
        ratios += sum_of(kept, ratio)

    note_sums(partial_ptr, count, objective, critic, entropy, divergence, outside, ratios)
    if last_to_finish(counter_ptr):
        finish(
            partial_ptr,
            loss_objective_ptr,
            loss_critic_ptr,
            loss_entropy_ptr,
            report_ptr,
            entropy_coeff,
            critic_coeff,
            PROGRAMS,
        )


@triton.jit
def gaussian_gradients(
    policy_ptr, log_std_ptr, action_ptr, start, tile, column, there, width, w, SHARED: tl.constexpr
):
    """By mean and by log_std of `w` times the log-probability, zero where nothing is there."""
    _, precision, z = load_gaussian(
        policy_ptr, log_std_ptr, action_ptr, start, tile, column, there, width, SHARED
    )
    return tl.where(there, w * z * precision, 0.0), tl.where(there, w * (z * z - 1.0), 0.0)


@triton.jit
def categorical_gradient(
    policy_ptr, action_ptr, saved_ptr, start, tile, column, there, row, kept, num_rows, w, by_entropy
):
    """By the logits, of `w` times the log-probability less `by_entropy` times the entropy."""
    norm = tl.load(saved_ptr + 2 * num_rows + row, mask=kept, other=0.0)
    entropy = tl.load(saved_ptr + 3 * num_rows + row, mask=kept, other=0.0)
    log_p = tl.load(policy_ptr + start + tile, mask=there, other=0.0).to(tl.float32) - norm[:, None]
    p = tl.exp(log_p)
    rise = tl.where(p == 0.0, 0.0, by_entropy * p * (log_p + entropy[:, None]))
    action = tl.load(action_ptr + row, mask=kept, other=0)
    taken = tl.where(column[None, :] == action[:, None], 1.0, 0.0)
    return tl.where(there, rise + w * (taken - p), 0.0)


@triton.jit
def incoming(gradient_ptr, factor):
    """The gradient of a loss times a factor; a loss that nothing depends on has none."""
    if gradient_ptr is None:
        return 0.0
    else:  # noqa: RET505, the other branch would be compiled too
        return tl.load(gradient_ptr) * factor


@triton.jit
def add_up_columns(partial_ptr, column, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of a row a program, `[COLUMNS]`, in a fixed order."""
    total = tl.zeros([COLUMNS], tl.float32)
    for begin in range(0, tl.num_programs(0), ROWS):
        p = (begin + tl.arange(0, ROWS))[:, None]
        found = (p < tl.num_programs(0)) & (column < width)[None, :]
        partial = partial_ptr + p * width + column[None, :]
        total += tl.sum(tl.load(partial, mask=found, other=0.0, cache_modifier=".cg"), 0)
    return total


@triton.jit
def backward_kernel(
    policy_ptr,
    log_std_ptr,
    action_ptr,
    mask_ptr,
    report_ptr,
    saved_ptr,
    grad_objective_ptr,
    grad_critic_ptr,
    grad_entropy_ptr,
    of_policy_ptr,
    of_log_std_ptr,
    of_value_ptr,
    partial_ptr,
    counter_ptr,
    num_rows,
    width,
    entropy_coeff,
    critic_coeff,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)
    count = tl.load(report_ptr + 4)
    scale = 1.0 / tl.maximum(count, 1.0)
    by_objective = incoming(grad_objective_ptr, scale)
    by_critic = incoming(grad_critic_ptr, critic_coeff * scale)
    by_entropy = incoming(grad_entropy_ptr, entropy_coeff * scale)

    total = tl.zeros([COLUMNS], tl.float32)
    for block in range(program, tl.cdiv(num_rows, ROWS), num_programs):
        first, row, inside, kept = samples_of(block, mask_ptr, num_rows, ROWS)
        tile, start = tl.arange(0, ROWS)[:, None] * width + column[None, :], first * width
        writes = inside[:, None] & (column < width)[None, :]
        weight = tl.load(saved_ptr + row, mask=inside, other=0.0)
        slope = tl.load(saved_ptr + num_rows + row, mask=inside, other=0.0)
        tl.store(of_value_ptr + row, by_critic * slope, mask=inside)
        w = (weight * by_objective)[:, None]
        if log_std_ptr is not None:
            # Neither hidden by the mask nor clipped.
            there = writes & (weight != 0.0)[:, None]
            of_policy, pull = gaussian_gradients(
                policy_ptr, log_std_ptr, action_ptr, start, tile, column, there, width, w, SHARED
            )
            if SHARED:
                total += tl.sum(pull, 0)
            else:
                of_log_std = pull - tl.where(kept, by_entropy, 0.0)[:, None]
                tl.store(of_log_std_ptr + start + tile, of_log_std, mask=writes)
        else:
            there = writes & kept[:, None]
            of_policy = categorical_gradient(
                policy_ptr,
                action_ptr,
                saved_ptr,
                start,
                tile,
                column,
                there,
                row,
                kept,
                num_rows,
                w,
                by_entropy,
            )
        tl.store(of_policy_ptr + start + tile, of_policy, mask=writes)

    if SHARED:
        tl.store(partial_ptr + program * width + column, total, mask=column < width)
        if last_to_finish(counter_ptr):
            total = add_up_columns(partial_ptr, column, width, ROWS, COLUMNS)
            tl.store(of_log_std_ptr + column, total - by_entropy * count, mask=column < width)


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
    """See `kernels.ppo_loss.op.forward`; contiguous tensors on one CUDA device, no host synchronization."""
    outputs = make_outputs(policy, log_std)
    programs, options = _grid(policy, log_std)
    with torch.cuda.device_of(policy):
        forward_kernel[(programs,)](
            policy,
            log_std,
            action,
            log_prob,
            advantage,
            value,
            None if clip_value is None else old_value,
            value_target,
            advantage_mean,
            advantage_rstd,
            mask,
            *outputs,
            policy.new_empty(7, programs, dtype=torch.float32),
            policy.new_zeros(1, dtype=torch.int32),
            *policy.shape,
            math.log1p(-clip_epsilon),
            math.log1p(clip_epsilon),
            1.0 - clip_epsilon,
            1.0 + clip_epsilon,
            entropy_coeff,
            critic_coeff,
            clip_value or 0.0,
            SMOOTH=loss_critic_type == "smooth_l1",
            PROGRAMS=MAX_PROGRAMS,
            **options,
        )
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
    """See `kernels.ppo_loss.op.backward`; contiguous tensors on one CUDA device, no host synchronization."""
    gradients = make_gradients(policy, log_std, value)
    programs, options = _grid(policy, log_std)
    num_partials = programs * policy.shape[1] if options["SHARED"] else 0
    with torch.cuda.device_of(policy):
        backward_kernel[(programs,)](
            policy,
            log_std,
            action,
            mask,
            report,
            saved,
            grad_objective,
            grad_critic,
            grad_entropy,
            *gradients,
            policy.new_empty(num_partials, dtype=torch.float32),
            policy.new_zeros(1, dtype=torch.int32),
            *policy.shape,
            entropy_coeff,
            critic_coeff,
            **options,
        )
    return gradients


def _grid(policy: Tensor, log_std: Tensor | None) -> tuple[int, dict[str, int | bool]]:
    """Number of programs, one even where there is no sample, and what the kernels are specialized to."""
    num_rows, width = policy.shape
    columns = triton.next_power_of_2(width)
    rows = max(1, BLOCK // columns)
    options = {
        "SHARED": log_std is not None and log_std.ndim == 1,
        "ROWS": rows,
        "COLUMNS": columns,
        "num_warps": NUM_WARPS,
        "enable_fp_fusion": True,
    }
    return min(max(1, triton.cdiv(num_rows, rows)), MAX_PROGRAMS), options
