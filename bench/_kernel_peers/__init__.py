"""What other libraries offer for the work of our kernels: `PEERS[kernel][name](inputs)` returns a call.

Its results are torch tensors in the order of ours, as many as it has, or a function that tells them.
"""

from __future__ import annotations

from bench._kernel_peers import ppo, replay, rollout, running, sequence
from bench._kernel_peers.common import Call, Inputs, Make, NotRun, consistent_inputs, with_gradients

__all__ = [
    "DIFFERENTIATED",
    "PEERS",
    "Call",
    "Inputs",
    "Make",
    "NotRun",
    "consistent_inputs",
    "with_gradients",
]

PEERS: dict[str, dict[str, Make]] = {
    **rollout.PEERS,
    **ppo.PEERS,
    **running.PEERS,
    **sequence.PEERS,
    **replay.PEERS,
}

DIFFERENTIATED = {"ppo_loss": ppo.LEAVES}
"""Kernels that are timed forward and backward, and the inputs by which they are differentiated."""
