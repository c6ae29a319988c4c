"""The gate `parity`: on recorded observations the bundle acts like the policy in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from pi_incubator.deploy.gates._base import Candidate, Result
from pi_incubator.deploy.session import Array
from pi_incubator.registry import gate
from pi_incubator.runtime import Policy

REDUCED_LIMITS = {"fp16": 1e-2, "int8": 0.2}
"""Precision -> largest difference of an action. Ant and the Go1 differ by 0.001 in fp16 and by 0.06 in int8
where they differ most; what a few such actions cost is for the return to say. fp32 has the experiment's own
`deployment.tolerance`."""


@gate("parity")
def parity(candidate: Candidate) -> Result:
    """Step the runtime through the recording, world by world, with the states that it keeps itself.

    Of these the last action is compared, then set to the recorded one, as `Recording.play` does it.
    """
    recording, contract = candidate.recording, candidate.bundle.contract
    policy = Policy.of(candidate.bundle, provider="onnxruntime", max_rate=math.inf)
    worst: list[float] = []
    num_flagged = 0
    for world in range(recording.begins.shape[1]):
        policy.reset()
        columns = (recording.readings, recording.begins, recording.action)
        for readings, begins, action in zip(*(column[:, world] for column in columns), strict=True):
            if begins:
                policy.reset()
            policy.step(readings)
            num_flagged += policy.flags != 0
            worst += _differences(policy, action, candidate)
            if (remembered := policy.states().get("last_action")) is not None:
                remembered[:] = action
    difference = float(np.max(worst))  # a NaN in any stays one
    limit = REDUCED_LIMITS.get(contract.precision, candidate.cfg.deployment.tolerance)
    details = {"observations": recording.count, "flagged_steps": num_flagged}
    return Result(difference <= limit, difference, limit, "action or target", details)


def _differences(policy: Policy, action: Array, candidate: Candidate) -> Iterator[float]:
    """Of the target, and of the action behind it where the policy remembers that one."""
    expected = candidate.interface.targets.control(torch.from_numpy(action)).numpy()
    yield float(np.abs(policy.target - expected).max())
    if "last_action" in (states := policy.states()):
        yield float(np.abs(states["last_action"] - action).max())
