"""The compiled losses as one node each way: an operator for torch.compile, an autograd function without it.

Called eagerly, the operator would take longer than the kernels: 230 µs more for forward and backward.
"""

import torch
from torch import Tensor

from kernels import dispatch

# What `forward` saves for `backward`, per sample: the derivative of the objective by its log-probability and
# of the value loss by its value, and, of a categorical policy, logsumexp of the logits and the entropy.
NUM_SAVED_GAUSSIAN, NUM_SAVED_CATEGORICAL = 2, 4
# Entropy, KL divergence, clip fraction, mean ratio, number of samples that count.
NUM_REPORTED = 5


def run_forward(
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
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Three losses `[]`, report `[NUM_REPORTED]` and saved `[2 or 4, B]`, float32; contiguous inputs."""
    module = dispatch.load("ppo_loss", implementation, policy.device.type, torch.float32)
    return module.forward(
        policy,
        log_std,
        action,
        log_prob,
        advantage,
        value,
        old_value,
        value_target,
        advantage_mean,
        advantage_rstd,
        mask,
        clip_epsilon,
        entropy_coeff,
        critic_coeff,
        loss_critic_type,
        clip_value,
    )


forward = torch.library.custom_op("pi_incubator::ppo_loss", run_forward, mutates_args=())


@forward.register_fake
def _(policy, log_std, action, log_prob, advantage, value, *args):  # type: ignore[no-untyped-def]
    return make_outputs(policy, log_std)


def make_outputs(policy: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `forward` returns, unwritten; each a tensor of its own, so that none is a view of another."""
    num_saved = NUM_SAVED_CATEGORICAL if log_std is None else NUM_SAVED_GAUSSIAN
    objective, critic, entropy = (policy.new_empty((), dtype=torch.float32) for _ in range(3))
    report = policy.new_empty(NUM_REPORTED, dtype=torch.float32)
    return objective, critic, entropy, report, policy.new_empty(num_saved, len(policy), dtype=torch.float32)


def run_backward(
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
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `policy`, `log_std` (empty where that is None) and `value`, in their dtypes."""
    module = dispatch.load("ppo_loss", implementation, policy.device.type, torch.float32)
    return module.backward(
        policy,
        log_std,
        action,
        value,
        mask,
        report,
        saved,
        grad_objective,
        grad_critic,
        grad_entropy,
        entropy_coeff,
        critic_coeff,
    )


backward = torch.library.custom_op("pi_incubator::ppo_loss_backward", run_backward, mutates_args=())


@backward.register_fake
def _(policy, log_std, action, value, *args):  # type: ignore[no-untyped-def]
    return make_gradients(policy, log_std, value)


def make_gradients(policy: Tensor, log_std: Tensor | None, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `backward` returns, unwritten."""
    of_log_std = policy.new_empty(0) if log_std is None else torch.empty_like(log_std)
    return torch.empty_like(policy), of_log_std, torch.empty_like(value)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    policy, log_std, action, _, _, value, _, _, _, _, mask, *settings = inputs
    _, ctx.entropy_coeff, ctx.critic_coeff, _, _, ctx.implementation = settings
    report, saved = output[3:]
    ctx.mark_non_differentiable(report, saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(policy, log_std, action, value, mask, report, saved)


def _differentiate(run, ctx, gradients):  # type: ignore[no-untyped-def]
    """A gradient, or None, for each argument of `forward`."""
    tensors, settings = ctx.saved_tensors, (ctx.entropy_coeff, ctx.critic_coeff, ctx.implementation)
    of_policy, of_log_std, of_value = run(*tensors, *gradients[:3], *settings)
    no_log_std = tensors[1] is None
    return of_policy, None if no_log_std else of_log_std, None, None, None, of_value, *[None] * 11


forward.register_autograd(
    lambda ctx, *gradients: _differentiate(backward, ctx, gradients), setup_context=_save
)


class Function(torch.autograd.Function):
    """`forward` without the operator."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        output = run_forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        return _differentiate(run_backward, ctx, gradients)
