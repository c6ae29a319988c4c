"""The gate `parity`: on recorded observations the bundle acts and remembers like the policy in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pi_incubator.deploy.gates._base import Candidate, Result
from pi_incubator.deploy.record import Recording, remembered_error, target_error
from pi_incubator.registry import gate
from pi_incubator.runtime import Policy

REDUCED_LIMITS = {"fp16": 1e-2, "int8": 0.2}
"""Precision -> largest difference of an action, or of a target in its unit. Ant and the Go1 differ by 0.001
in fp16 and by 0.06 in int8 where they differ most; what a few such actions cost is for the return to say.
fp32 has the experiment's own `deployment.tolerance`."""


@gate("parity")
def parity(candidate: Candidate) -> Result:
    """Step the runtime through the recording, world by world, with the states that it keeps itself.

    They are compared, then set to the recorded ones: see `action_error`.
    """
    recording, contract = candidate.recording, candidate.bundle.contract
    policy = Policy.of(candidate.bundle, provider="onnxruntime", max_rate=math.inf)
    worst: list[float] = []
    num_flagged = 0
    for world in range(recording.begins.shape[1]):
        policy.reset()
        alone = recording.of_world(world)
        for t, (readings, begins) in enumerate(zip(alone.readings, alone.begins, strict=True)):
            if begins[0]:
                policy.reset()
            policy.step(readings[0])
            num_flagged += policy.flags != 0
            worst += _differences(policy, alone, t, candidate)
    difference = float(np.max(worst))  # a NaN in any stays one
    limit = REDUCED_LIMITS.get(contract.precision, candidate.cfg.deployment.tolerance)
    details = {"observations": recording.count, "flagged_steps": num_flagged}
    return Result(difference <= limit, difference, limit, "action, target or state", details)


def _differences(policy: Policy, alone: Recording, t: int, candidate: Candidate) -> Iterator[float]:
    """Of the target, and of what the policy remembers, which is then as recorded."""
    targets = candidate.interface.targets
    yield target_error(policy.target, alone.action[t, 0], targets)
    states = policy.states()
    for name, recorded in alone.remembered(t).items():
        if name in states:
            yield remembered_error(name, states[name], recorded[0], targets)
            states[name][:] = recorded[0]
