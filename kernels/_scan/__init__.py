"""The recursion `x[t] = a[t] + b[t] * x[t + 1]` behind every return. T steps, N worlds.

TD(lambda) targets, lambda returns and discounted returns are one formula, `returns`, with discounts from
different sources; V-trace's targets are that formula with importance weights. So there is one loop over the
steps, in torch, in Triton and in C++, which makes `a` and `b` from what is given. `x` is the target itself,
not the advantage: what follows the last step, or an episode's end, is then simply its next value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels._checks import computed_in


def run(name: str, implementation: str, num_outputs: int | None, *arguments: Any) -> Tensor:
    """Function `name` of the implementation, or an empty result; tensors that are not contiguous are copied.

    Args:
        name: "returns", "returns_backward" or "vtrace".
        implementation: as for `kernels.gae.gae`.
        num_outputs: P of the result `[P, T, N]`, or None where it is `[T, N]`.
        *arguments: of that function, a `[T, N]` tensor first.
    """
    first = arguments[0]
    module = dispatch.load("_scan", implementation, first.device.type, computed_in(first.dtype))
    if first.numel() == 0:
        return outputs(first, num_outputs)
    contiguous = [x.contiguous() if isinstance(x, Tensor) else x for x in arguments]
    return getattr(module, name)(*contiguous)


def outputs(like: Tensor, num_outputs: int | None, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for `num_outputs` results in one tensor: an operator's results may not share theirs."""
    return like.new_empty(like.shape if num_outputs is None else (num_outputs, *like.shape), dtype=dtype)


def returns(
    reward: Tensor,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
    implementation: str,
) -> Tensor:
    """Returns that mix all horizons; once differentiable by `reward`, `next_value` and `discount`.

        follows[t] = next_value[t] where done[t] or t is the last step, else x[t + 1]
        x[t]       = reward[t] + discount[t] * ((1 - lam) * next_value[t] + lam * follows[t])

    Either `discount` is given, perhaps with `terminated`, or `terminated` and `done` are, and the discount
    is gamma. Where terminated, nothing follows, not even NaN. With lam = 1, `next_value` counts only where
    it follows.
    """
    arguments = (reward, next_value, discount, terminated, done, gamma, lam, implementation)
    needs_gradient = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (reward, next_value, discount)
    )
    # Without the operator an eager call is 15 µs shorter.
    if needs_gradient or torch.compiler.is_compiling():
        return _returns(*arguments)
    return run("returns", implementation, None, *arguments[:-1])


@torch.library.custom_op("pi_incubator::returns", mutates_args=())
def _returns(
    reward: Tensor,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
    implementation: str,
) -> Tensor:
    return run("returns", implementation, None, reward, next_value, discount, terminated, done, gamma, lam)


@_returns.register_fake
def _(reward: Tensor, *_: Any) -> Tensor:
    return outputs(reward, None)


@torch.library.custom_op("pi_incubator::returns_backward", mutates_args=())
def _returns_backward(
    gradient: Tensor,
    target: Tensor | None,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
    implementation: str,
) -> Tensor:
    """`[P, T, N]`, the gradients by reward, by next value and, if there is one, by discount."""
    num_outputs = 2 if discount is None else 3
    arguments = (gradient, target, next_value, discount, terminated, done, gamma, lam)
    return run("returns_backward", implementation, num_outputs, *arguments)


@_returns_backward.register_fake
def _(
    gradient: Tensor, target: Tensor | None, next_value: Tensor, discount: Tensor | None, *_: Any
) -> Tensor:
    return outputs(gradient, 2 if discount is None else 3)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, next_value, discount, terminated, done, *ctx.numbers = inputs
    target = None if discount is None else output
    ctx.save_for_backward(target, next_value, discount, terminated, done)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    by_reward, by_next_value, *by_discount = _returns_backward(gradient, *ctx.saved_tensors, *ctx.numbers)
    return by_reward, by_next_value, *(by_discount or [None]), *(None,) * 5


_returns.register_autograd(_backward, setup_context=_save)
