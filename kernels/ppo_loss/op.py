"""The compiled losses as torch operators, so that autograd and torch.compile see one node each way."""

import torch
from torch import Tensor

from kernels import dispatch

# What `forward` saves for `backward`, per sample: the derivative of the objective by its log-probability and
# of the value loss by its value, and, of a categorical policy, logsumexp of the logits and the entropy.
NUM_SAVED_GAUSSIAN, NUM_SAVED_CATEGORICAL = 2, 4
# Entropy, KL divergence, clip fraction, mean ratio, number of samples that count.
NUM_REPORTED = 5


@torch.library.custom_op("pi_incubator::ppo_loss", mutates_args=())
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


@forward.register_fake
def _(policy, log_std, action, log_prob, advantage, value, *args):  # type: ignore[no-untyped-def]
    return make_outputs(policy, log_std)


def make_outputs(policy: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `forward` returns, unwritten; each a tensor of its own, so that none is a view of another."""
    num_saved = NUM_SAVED_CATEGORICAL if log_std is None else NUM_SAVED_GAUSSIAN
    objective, critic, entropy = (policy.new_empty((), dtype=torch.float32) for _ in range(3))
    report = policy.new_empty(NUM_REPORTED, dtype=torch.float32)
    return objective, critic, entropy, report, policy.new_empty(num_saved, len(policy), dtype=torch.float32)


@torch.library.custom_op("pi_incubator::ppo_loss_backward", mutates_args=())
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


@backward.register_fake
def _(policy, log_std, action, value, *args):  # type: ignore[no-untyped-def]
    return make_gradients(policy, log_std, value)


def make_gradients(policy: Tensor, log_std: Tensor | None, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `backward` returns, unwritten."""
    of_log_std = policy.new_empty(0) if log_std is None else torch.empty_like(log_std)
    return torch.empty_like(policy), of_log_std, torch.empty_like(value)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    policy, log_std, action, _, _, value, _, _, _, _, mask, *settings = inputs
    _, ctx.entropy_coeff, ctx.critic_coeff, _, _, ctx.implementation = settings
    report, saved = output[3:]
    ctx.mark_non_differentiable(report, saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(policy, log_std, action, value, mask, report, saved)


def _backward(ctx, grad_objective, grad_critic, grad_entropy, *_):  # type: ignore[no-untyped-def]
    of_policy, of_log_std, of_value = backward(
        *ctx.saved_tensors,
        grad_objective,
        grad_critic,
        grad_entropy,
        ctx.entropy_coeff,
        ctx.critic_coeff,
        ctx.implementation,
    )
    if ctx.saved_tensors[1] is None:
        of_log_std = None
    return of_policy, of_log_std, None, None, None, of_value, *[None] * 11


forward.register_autograd(_backward, setup_context=_setup_context)
