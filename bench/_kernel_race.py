"""What `pi-bench kernels` runs in a fresh process: one kernel at one size, and its peers, in turns."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kernels
from bench._kernel_peers import (
    DIFFERENTIATED,
    PEERS,
    Call,
    Inputs,
    Make,
    NotRun,
    consistent_inputs,
    with_gradients,
)
from bench.kernels import COPY, OURS

PLAIN = "plain torch"
TURN_S = 0.05
MAX_CALLS = 2000
# Of float32 sums over thousands of steps, relative to the largest entry.
TOLERANCE = 1e-3


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a call, one number a round, for every candidate; and why others were left out."""
    device = settings["device"]
    if device == "cpu":
        _stay_on_one_core()
    entry = kernels.get(settings["kernel"])
    inputs = consistent_inputs(entry.inputs(settings["num_steps"], settings["num_worlds"], device=device))
    ours, expected = _start(_kernel(entry), inputs)
    moved = [x for x in inputs.values() if isinstance(x, Tensor)] + expected
    candidates: dict[str, Call] = {OURS: ours, COPY: _copy(moved)}
    left_out: dict[str, str] = {}
    peers = {PLAIN: _kernel(entry, "reference")} | (PEERS.get(entry.name, {}) if settings["peers"] else {})
    for name, make in peers.items():
        try:
            call, results = _start(make, inputs)
            _check(results, expected)
            candidates[name] = call
        except NotRun as reason:
            left_out[name] = str(reason)
        except Exception as error:  # of one peer: the others are measured all the same
            left_out[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return {
        "seconds": take_turns(candidates, settings["rounds"], device),
        "elements": settings["num_steps"] * settings["num_worlds"],
        "bytes": sum(tensor.nbytes for tensor in moved),
        "left_out": left_out,
    }


def take_turns(candidates: dict[str, Call], num_rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of a call, one number a round; each round gives every candidate as long."""
    timer = _time_on_cuda if device == "cuda" else _time_on_cpu
    num_calls = {}
    for name, call in candidates.items():
        timer(call, 1)  # the first call after a while finds cold caches
        num_calls[name] = max(1, min(MAX_CALLS, int(TURN_S / timer(call, 1))))
    rounds = [
        {name: timer(call, num_calls[name]) for name, call in candidates.items()} for _ in range(num_rounds)
    ]
    return {name: [one[name] for one in rounds] for name in candidates}


def _time_on_cpu(call: Call, num_calls: int) -> float:
    began_s = time.perf_counter()
    for _ in range(num_calls):
        call()
    return (time.perf_counter() - began_s) / num_calls


def _time_on_cuda(call: Call, num_calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(num_calls):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end) / num_calls


def _kernel(entry: kernels.Kernel, implementation: str = "auto") -> Make:
    """What is timed of a kernel: its call, with the gradients where peers have them too."""

    def make(inputs: Inputs) -> Call:
        return partial(entry.call, **inputs, implementation=implementation)

    leaves = DIFFERENTIATED.get(entry.name)
    return with_gradients(make, leaves) if leaves else make


def _start(make: Make, inputs: Inputs) -> tuple[Call, list[Tensor]]:
    """A call on inputs of its own, and the results of the first one: what it returns, then what it changed.

    Results that take a while to be told, such as a tree of Python, come as a function, which is not timed.
    """
    own = {name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    call = make(own)
    returned = call()
    returned = returned() if callable(returned) else returned
    returned = [returned] if isinstance(returned, Tensor) else returned or ()
    changed = [
        own[name].clone()
        for name, x in inputs.items()
        if isinstance(x, Tensor) and not torch.equal(own[name], x)
    ]
    return call, [x for x in returned if isinstance(x, Tensor)] + changed


def _copy(tensors: list[Tensor]) -> Call:
    """Read and write as many bytes as `tensors` have, half each."""
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    source = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=tensors[0].device)
    return partial(torch.empty_like(source).copy_, source)


def _check(results: list[Tensor], expected: list[Tensor]) -> None:
    """Raises NotRun where a peer's results, as many as it has, are not ours."""
    for result, ours in zip(results, expected, strict=False):
        result = result.to(ours.device).reshape(ours.shape)
        worst = ((result.double() - ours.double()).abs().max() / ours.double().abs().max()).item()
        if not worst <= TOLERANCE:
            raise NotRun(f"its result differs by {worst:.1e}")


def _stay_on_one_core() -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
