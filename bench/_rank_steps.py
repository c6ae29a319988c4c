"""One rank of `pi-bench ranks`: warms up, then times some iterations; rank 0 prints how long they took."""

from __future__ import annotations

import json
import sys
import time

import torch.distributed as dist

from bench._loops.pi_incubator import make
from pi_incubator.distributed import join, leave

WARM_UP_ITERATIONS = 3
"""The first one compiles."""


def main(settings: str, num_iterations: str) -> None:
    """Time `num_iterations` of the config that `settings` holds as JSON."""
    distributed = join(on_cuda=False)
    loop = make(json.loads(settings), distributed)
    for _ in range(WARM_UP_ITERATIONS):
        loop.iterate()
    _wait(distributed.world_size)
    began_s = time.perf_counter()
    env_steps = sum(loop.iterate() for _ in range(int(num_iterations)))
    _wait(distributed.world_size)
    if distributed.is_main:
        print(json.dumps({"env_steps": env_steps, "wall_s": time.perf_counter() - began_s}))
    leave(distributed)


def _wait(world_size: int) -> None:
    if world_size > 1:
        dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
