"""What the peers share: their types, and calls of JAX, of autograd and of libraries that may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
Call = Callable[[], Any]
Make = Callable[[Inputs], Call]


class NotRun(Exception):
    """A peer cannot do this; the message is the reason for the table."""


def consistent_inputs(inputs: Inputs) -> Inputs:
    """`inputs` with nothing masked out, and, where values are given, none truncated and all in a row.

    Next values are then those of the following step. Many peers know nothing else, and our kernels take the
    same time for it.
    """
    changed = {}
    if "mask" in inputs:
        changed["mask"] = torch.ones_like(inputs["mask"])
    if {"value", "next_value", "terminated", "done"} <= inputs.keys():
        changed["next_value"] = torch.cat((inputs["value"][1:], inputs["next_value"][-1:]))
        changed["done"] = inputs["terminated"].clone()
    return inputs | changed


def import_peer(module: str, fix: str) -> Any:
    """The module, imported.

    Raises:
        NotRun: it is not installed; `fix` is the command that installs it.
    """
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise NotRun(f"{module.partition('.')[0]} is not installed; {fix}") from None


def import_jax() -> Any:
    """JAX, or NotRun."""
    return import_peer("jax", "pip install -e '.[mjx]'")


def need_cpu(tensor: Tensor) -> None:
    """NotRun for a peer of numpy or Python where the tensors are elsewhere."""
    if tensor.device.type != "cpu":
        raise NotRun("computes on the CPU")


def jitted(function: Callable[..., Any], inputs: Inputs, names: Iterable[str]) -> Call:
    """A function of JAX arrays on the tensors called `names`, without a copy, until its results are there."""
    jax = import_jax()
    tensors = [inputs[name] for name in names]
    if tensors[0].is_cuda and jax.default_backend() != "gpu":
        raise NotRun("JAX finds no GPU; pip install 'jax[cuda13]'")
    run, arrays = jax.jit(function), [jax.numpy.from_dlpack(x) for x in tensors]

    def call() -> list[Tensor]:
        return [torch.from_dlpack(array) for array in jax.block_until_ready(run(*arrays))]

    return call


def with_gradients(make: Make, names: Iterable[str]) -> Make:
    """Both ways: the losses of a call, then the gradients of their sum by the inputs called `names`."""

    def make_both(inputs: Inputs) -> Call:
        leaves = [inputs[name].requires_grad_() for name in names]
        forward = make(inputs)

        def call() -> list[Tensor]:
            losses = [x for x in forward() if x.requires_grad]
            gradients = torch.autograd.grad(torch.stack(losses).sum(), leaves)
            return [x.detach() for x in (*losses, *gradients)]

        return call

    return make_both
