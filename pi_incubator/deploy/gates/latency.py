"""The gate `latency`: a step of the runtime takes a small part of the control period."""

from __future__ import annotations

from pi_incubator.deploy.gates._base import Candidate, Result
from pi_incubator.registry import gate
from pi_incubator.runtime import Policy
from pi_incubator.runtime.bench import bench

SHARE = 0.1
"""Of the control period that a step may take: the rest belongs to sensors, the bus and the motors."""
NUM_STEPS = 2000
PACED_S = 5.0


@gate("latency")
def latency(candidate: Candidate) -> Result:
    """Time steps one after the other and at the control rate; the worse 99th percentile counts.

    It is that of this machine: on the robot `pi-runtime bench` says.
    """
    policy = Policy.of(candidate.bundle)
    measured = bench(policy, num_steps=NUM_STEPS, paced_s=PACED_S)
    limit_ms = SHARE * 1e3 / candidate.bundle.contract.control_hz
    value_ms = max(measured.step_us[1], measured.paced_us[1]) / 1e3
    details = {
        "step_p50_us": measured.step_us[0],
        "step_p99_us": measured.step_us[1],
        "paced_p50_us": measured.paced_us[0],
        "paced_p99_us": measured.paced_us[1],
        "deadline_misses": measured.deadline_misses,
        "provider": policy.provider,
    }
    return Result(value_ms <= limit_ms, value_ms, limit_ms, "ms (p99 of a step)", details)
