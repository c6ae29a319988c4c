"""The sum tree of prioritized replay: sampling in proportion to priorities that change (Schaul et al. 2016).

A tree is one float32 tensor `[P + C]` of capacity C. It is the binary tree of sums with every fourth level
stored, so an entry has 16 children, which lie in one cache line. The levels follow each other from the root,
entry 0, to the C leaves, which hold the priorities. Every level but the leaves is padded with zeros to a
multiple of 16 entries; all of them together are P entries. So the length alone determines the capacity, and
the tensor can be cloned, saved and moved like any other. B entries a batch.

Every inner entry is the sum of its children, added in pairs as in the binary tree. It is recomputed whenever
one of them changes and never incremented: errors do not grow with the number of updates, and a tree is bit
for bit the same as one that is built at once from its leaves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels._checks import FLOATING
from kernels.registry import kernel

MAX_CAPACITY = 2**29
FAN_OUT = 16
"""Children of an inner entry."""


def make(capacity: int, device: torch.device | str = "cpu") -> Tensor:
    """A tree of `capacity` priorities, all zero: `[P + capacity]` float32.

    Raises:
        ValueError: the capacity is not from 1 to 2**29.
    """
    if not 1 <= capacity <= MAX_CAPACITY:
        raise ValueError(f"sum_tree: capacity must be from 1 to {MAX_CAPACITY}, got {capacity}")
    return torch.zeros(_num_inner(capacity) + capacity, dtype=torch.float32, device=device)


def level_sizes(capacity: int) -> list[int]:
    """How many entries each level has, from the root to the leaves, without padding."""
    sizes = [capacity]
    while len(sizes) == 1 or sizes[0] > 1:
        sizes.insert(0, -(-sizes[0] // FAN_OUT))
    return sizes


def first_leaf(tree: Tensor) -> int:
    """P: where the leaves begin."""
    return _first_leaf(len(tree))


def _num_inner(capacity: int) -> int:
    """P, with the padding of each level."""
    return sum(-(-size // FAN_OUT) * FAN_OUT for size in level_sizes(capacity)[:-1])


@cache
def _first_leaf(length: int) -> int:
    """P of a tree of `length` entries; more than `length` where no tree has so many."""
    low, high = 1, max(1, length)  # the capacity, by bisection: the length grows with it
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _num_inner(middle) + middle >= length else (middle + 1, high)
    return length - low if _num_inner(low) + low == length else length + 1


def priorities(tree: Tensor) -> Tensor:
    """`[C]`, a view of the leaves; to be read only, as `update` alone keeps the sums."""
    return tree[first_leaf(tree) :]


def total(tree: Tensor) -> Tensor:
    """`[]`, the sum of all priorities."""
    return tree[0].clone()


def minimum(tree: Tensor) -> Tensor:
    """`[]`, the least priority above zero, infinite if there is none.

    Schaul et al. (section 3.4) divide the weights by the largest one, and that is the weight of this
    priority. It reads every leaf, where `sample` reads a few; many divide by the largest of the batch.
    """
    leaves = priorities(tree)
    return torch.where(leaves > 0, leaves, torch.inf).amin()


def make_update_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `update`: a tree of T * N priorities, N of which change."""
    generator = torch.Generator().manual_seed(seed)
    capacity = num_steps * num_worlds
    tree = make(capacity)
    update(
        tree, torch.arange(capacity), torch.rand(capacity, generator=generator), implementation="reference"
    )
    index = torch.randint(capacity, (num_worlds,), generator=generator)
    priority = torch.rand(num_worlds, generator=generator)
    return {"tree": tree.to(device), "index": index.to(device), "priority": priority.to(device, dtype)}


def make_sample_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `sample`: a tree of T * N priorities, from which N are drawn."""
    tree = make_update_inputs(num_steps, num_worlds, device, seed=seed)["tree"]
    generator = torch.Generator().manual_seed(seed + 1)
    return {"tree": tree, "uniform": torch.rand(num_worlds, generator=generator, dtype=dtype).to(device)}


@kernel("sum_tree_update", inputs=make_update_inputs)
def update(tree: Tensor, index: Tensor, priority: Tensor, *, implementation: str = "auto") -> None:
    """Set the priorities at `index`, in place. Of an index that occurs twice the last priority stays.

    Args:
        tree: `[P + C]` float32, of `make`, contiguous.
        index: `[B]` int64, 0 to C - 1.
        priority: `[B]` float32, or any other floating point, rounded to float32; not negative, finite, and
            finite in sum. An entry of priority zero is never sampled.
        implementation: as for `kernels.gae.gae`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit. An index out of range, or a priority that is
            negative, infinite or NaN, is refused by the CPU and the reference before anything is written.
            On a GPU, which would have to be waited for, such an entry is skipped.
        ImportError: the package behind the implementation is not installed.
    """
    _check_tree(tree)
    if index.ndim != 1 or index.dtype != torch.int64 or index.device != tree.device:
        raise ValueError(
            f"sum_tree: index must be [B] int64 on {tree.device} like tree, "
            f"got {list(index.shape)} {index.dtype} on {index.device}"
        )
    fits = priority.shape == index.shape and priority.dtype in FLOATING and priority.device == tree.device
    if not fits:
        raise ValueError(
            f"sum_tree: priority must be {list(index.shape)} floating point on {tree.device} like index, "
            f"got {list(priority.shape)} {priority.dtype} on {priority.device}"
        )
    call = _update_op if torch.compiler.is_compiling() else _update
    call(tree, index, priority.detach(), implementation)


@kernel("sum_tree_sample", inputs=make_sample_inputs)
def sample(tree: Tensor, uniform: Tensor, *, implementation: str = "auto") -> tuple[Tensor, Tensor]:
    """The indices at which the running sum of priorities exceeds `uniform * total` (appendix B.2.1).

    Never one of priority zero, whatever is rounded. For the stratified sample of the appendix, give one
    number of each B-th of the range: `(torch.arange(B) + torch.rand(B, dtype=torch.float64)) / B`.

    Args:
        tree: `[P + C]` float32, of `make`, contiguous; its total above zero.
        uniform: `[B]` in [0, 1); 1, to which a stratified number may be rounded, is taken too. float32, or
            float64: float32 has 2**24 numbers, so few for each of a million leaves that their shares of the
            numbers differ by some 5%.
        implementation: as for `kernels.gae.gae`.

    Returns:
        `(index, probability)`: `[B]` int64, and `[B]` float32, priority / total.

    Raises:
        ValueError: shapes, dtypes or devices do not fit. A number out of range, or a tree without a priority
            above zero, is refused by the CPU and the reference. On a GPU, which would have to be waited for,
            such a number gives any index of a priority above zero, and such a tree gives index 0 with a
            probability of NaN.
        ImportError: the package behind the implementation is not installed.
    """
    _check_tree(tree)
    wide_enough = uniform.dtype in (torch.float32, torch.float64)
    if uniform.ndim != 1 or not wide_enough or uniform.device != tree.device:
        raise ValueError(
            f"sum_tree: uniform must be [B] float32 or float64 on {tree.device} like tree, "
            f"got {list(uniform.shape)} {uniform.dtype} on {uniform.device}"
        )
    call = _sample_op if torch.compiler.is_compiling() else _sample
    return call(tree, uniform.detach(), implementation)


def _check_tree(tree: Tensor) -> None:
    of_make = tree.ndim == 1 and first_leaf(tree) < len(tree)
    if not of_make or tree.dtype != torch.float32 or not tree.is_contiguous():
        raise ValueError(
            f"sum_tree: tree must be a contiguous float32 tensor of sum_tree.make, "
            f"got {list(tree.shape)} {tree.dtype}"
        )


def _update(tree: Tensor, index: Tensor, priority: Tensor, implementation: str) -> None:
    module = dispatch.load("sum_tree", implementation, tree.device.type, tree.dtype)
    if len(index):
        module.update(tree, index.contiguous(), priority.to(tree.dtype).contiguous())


_update_op = torch.library.custom_op("pi_incubator::sum_tree_update", _update, mutates_args={"tree"})


@_update_op.register_fake
def _(*_: Any) -> None:
    """It returns nothing."""


def _sample(tree: Tensor, uniform: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    module = dispatch.load("sum_tree", implementation, tree.device.type, tree.dtype)
    if len(uniform) == 0:
        return make_outputs(uniform)
    return module.sample(tree, uniform.contiguous())


_sample_op = torch.library.custom_op("pi_incubator::sum_tree_sample", _sample, mutates_args=())


@_sample_op.register_fake
def _(tree: Tensor, uniform: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    return make_outputs(uniform)


def make_outputs(uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for index and probability."""
    shape = uniform.shape
    return uniform.new_empty(shape, dtype=torch.int64), uniform.new_empty(shape, dtype=torch.float32)
