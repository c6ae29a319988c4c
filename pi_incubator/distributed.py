"""Several processes that train one policy together: who this one is, and what they exchange.

Every rank simulates its own worlds. Gradients, moments and metrics are averaged over the ranks, so that all
hold the same weights. One process is a group of one, for which nothing is exchanged.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from envs_gpu.errors import SettingError
from kernels.normalize.running import merge_all
from pi_incubator.launcher import launch_of_environment

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others, while rank 0 evaluates; a rank that died is noticed at once."""

JOIN_TIMEOUT_S = 600.0
"""How long rank 0 waits at the start for the others."""

PEER_IS_GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
"""In the messages of gloo and NCCL when another process has ended."""


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together."""

    rank: int = 0
    """From 0; rank 0 owns the run folder, the tracker and the console."""
    world_size: int = 1
    """How many processes there are."""
    objects: dist.ProcessGroup | None = None
    """The group, on the CPU, that exchanges objects; None where there is one process."""

    @property
    def can_be_captured(self) -> bool:
        """Whether an exchange may be part of a CUDA graph: not with gloo, which goes through the host."""
        return self.world_size == 1 or "nccl" in dist.get_backend_config()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group that exchanges tensors; None where there is one process."""
        return dist.group.WORLD if self.world_size > 1 else None

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The means over the ranks, exchanged as one buffer; all tensors have one dtype and device."""
        if self.world_size == 1:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.world_size).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def merge_moments(self, moments: Tensor) -> Tensor:
        """Moments `[3, D]` of what all ranks have seen, from those of this rank (see kernels.normalize)."""
        if self.world_size == 1:
            return moments
        gathered = [torch.empty_like(moments) for _ in range(self.world_size)]
        dist.all_gather(gathered, moments)
        return merge_all(torch.stack(gathered))

    def largest(self, number: int) -> int:
        """The largest of the numbers that the ranks give."""
        if self.world_size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.objects)
        return int(largest)

    def maximum(self, tensor: Tensor) -> Tensor:
        """The largest over the ranks, element by element."""
        if self.world_size == 1:
            return tensor
        largest = tensor.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in their order, on rank 0; empty on the others."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, gathered, group=self.objects)
        return gathered or []

    def broadcast(self, value: Any) -> Any:
        """What rank 0 gave, on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.objects)
        return values[0]

    def scatter(self, values: Sequence[Any]) -> Any:
        """This rank's entry of `values`, which rank 0 gives: one for each rank."""
        if self.world_size == 1:
            return values[0]
        received: list[Any] = [None]
        dist.scatter_object_list(received, list(values) if self.is_main else None, group=self.objects)
        return received[0]


def join(on_cuda: bool) -> Distributed:
    """Join the processes that torchrun started with this one; alone, there is nothing to join.

    Args:
        on_cuda: each rank takes the GPU of its local rank. Otherwise it keeps to its share of this machine's
            cores.

    Raises:
        SettingError: there are more ranks than GPUs on this machine.
    """
    launch = launch_of_environment()
    if launch.world_size == 1:
        return Distributed()
    local_rank, local_size = launch.local_rank, launch.local_world_size
    if on_cuda:
        num_gpus = torch.cuda.device_count()
        if local_size > num_gpus:
            problem = f"{local_size} processes on this machine share {num_gpus} GPUs"
            raise SettingError("compute.device", "cuda", problem, "start one for each GPU, or set it to cpu")
        torch.cuda.set_device(local_rank)
    elif local_size > 1:
        _keep_to_share_of_cores(local_rank, local_size)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(agree_on_name(store, rank, world_size), store)
    backend = _backend(store, rank, world_size) if on_cuda else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=world_size)
    return Distributed(rank, world_size, dist.new_group(backend="gloo", timeout=TIMEOUT))


def _backend(store: dist.Store, rank: int, world_size: int) -> str:
    """NCCL for CUDA tensors; gloo where ranks share a GPU, which NCCL refuses."""
    store.set(f"gpu/{rank}", str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
    gpus = {store.get(f"gpu/{other}") for other in range(world_size)}
    return "cpu:gloo,cuda:nccl" if len(gpus) == world_size else "gloo"


def agree_on_name(store: dist.Store, rank: int, world_size: int) -> str:
    """A name that all ranks of this start of the training know, and that no earlier start has used.

    After a restart torchrun gives the ranks the same store, which still holds the addresses of the processes
    that ended (pytorch issue 135712). Under a new name nobody reads those. Every rank makes a token. Rank 0
    answers each token that it finds with its own, until all ranks of this start have confirmed that one; a
    token of an ended process is answered too, and nobody confirms it.

    Raises:
        TimeoutError: a rank did not come within `JOIN_TIMEOUT_S`.
    """
    token = uuid.uuid4().hex
    if rank:
        store.set(f"token/{rank}", token)
        name = store.get(f"answer/{token}").decode()
        store.set(f"confirmed/{name}/{rank}", "")
        return name
    missing, deadline_s = set(range(1, world_size)), time.monotonic() + JOIN_TIMEOUT_S
    while missing:
        for other in sorted(missing):
            if store.check([f"token/{other}"]):
                store.set(f"answer/{store.get(f'token/{other}').decode()}", token)
            if store.check([f"confirmed/{token}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"ranks {sorted(missing)} did not start within {JOIN_TIMEOUT_S:.0f} s")
        time.sleep(0.01)
    return token


def leave(distributed: Distributed) -> None:
    """Leave the group, if there is one."""
    if distributed.world_size > 1:
        dist.destroy_process_group()


def lost_another_rank(error: BaseException, distributed: Distributed) -> bool:
    """Whether an exchange failed because another rank has ended."""
    if distributed.world_size == 1:
        return False
    if isinstance(error, dist.DistNetworkError):  # the store is gone, and with it rank 0 or the launcher
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_IS_GONE)


def _keep_to_share_of_cores(local_rank: int, local_size: int) -> None:
    """Pin this process to its part of the cores that it may use, if there is a core for each rank."""
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // local_size
    if share:
        os.sched_setaffinity(0, cores[local_rank * share : (local_rank + 1) * share])
