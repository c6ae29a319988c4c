"""The gate `sim_to_sim`: the exported file does its task in another simulator, late and with noisy sensors.

The simulator is C MuJoCo in a process of its own, and knows the policy only as packets on links in shared
memory: one link and one runtime for each robot, as a robot would have. Both sides take turns, period by
period of simulated time, so a slow machine changes nothing.

Letters: T steps, N worlds, D width of the readings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from pi_incubator.deploy.gates._base import Candidate, Result, kept_share
from pi_incubator.deploy.session import Array
from pi_incubator.errors import UserError
from pi_incubator.registry import gate
from pi_incubator.runtime import Flags, Policy
from pi_incubator.runtime.links import PolicyLink

LIMIT = 0.9
"""Share of the training simulator's return that is to be left."""
LATENCY_S = 0.005
"""From a measurement to the target that answers it, at the motors: a bus both ways and the policy between.
Rounded up to whole physics timesteps."""
NOISE_SHARE = 0.01
"""Noise of a sensor whose task does not say how noisy it is, in standard deviations of its readings."""
MAX_ROBOTS = 32
WAIT_S = 0.2
SIMULATOR = "pi_incubator.deploy.gates._simulator"


@gate("sim_to_sim")
def sim_to_sim(candidate: Candidate) -> Result:
    """Mean return of the bundle in C MuJoCo, beside that of the policy in torch where it was trained."""
    found, flagged_share = _run(candidate)
    share = kept_share(found["return"], candidate.reference)
    details = {
        "return": found["return"],
        "training_simulator_return": candidate.reference,
        "episodes": candidate.num_episodes,
        "latency_ms": found["latency_ms"],
        "flagged_share": flagged_share,
    }
    return Result(share >= LIMIT, share, LIMIT, "share of the return", details)


def sensor_noise(candidate: Candidate) -> Array:
    """Half the width `[D]` of the uniform noise on each reading; commands have none."""
    interface = candidate.interface
    scale = candidate.env.task.observation_noise_scale
    if scale is None:
        readings = candidate.recording.readings
        noise = NOISE_SHARE * readings.std((0, 1))
    else:
        parts = scale.cpu().split([term.width for term in interface.terms])
        sensed = zip(interface.terms, parts, strict=True)
        noise = np.concatenate([part.numpy() for term, part in sensed if term.kind != "last_action"])
    widths = [(term.kind, term.width) for term in interface.terms if term.kind != "last_action"]
    return noise * np.concatenate([np.full(width, kind == "sensor") for kind, width in widths])


def _run(candidate: Candidate) -> tuple[dict[str, Any], float]:
    """What the simulator reports, and the share of steps in which the runtime raised a flag."""
    num_robots = min(candidate.num_episodes, MAX_ROBOTS)
    urls = [f"shm:///pi-gate-{os.getpid()}-{robot}" for robot in range(num_robots)]
    with ExitStack() as stack:
        robots = []
        for url in urls:
            policy = Policy.of(candidate.bundle, provider="onnxruntime")
            robots.append((policy, stack.enter_context(closing(PolicyLink(url, policy.contract)))))
        simulator = stack.enter_context(_start(candidate, urls))
        num_steps = num_flagged = 0
        while simulator.poll() is None:
            for policy, link in robots:
                flags = _answer(policy, link)
                num_steps += flags is not None
                num_flagged += bool(flags)
        output, errors = simulator.communicate()
    if simulator.returncode:
        reason = (errors.strip().splitlines() or ["without a word"])[-1]
        raise UserError(f"sim_to_sim: the simulator's process failed ({reason}); run pi-eval to see why")
    return json.loads(output.splitlines()[-1]), num_flagged / max(num_steps, 1)


def _answer(policy: Policy, link: PolicyLink) -> Flags | None:
    """Wait for a robot's next observation and answer it; gives the step's flags, None where none came."""
    observation = link.receive(WAIT_S)
    if observation is None:
        return None
    if link.began_episode:
        policy.reset()
    target = policy.step(observation)
    link.send(target, policy.flags)
    return policy.flags


def _start(candidate: Candidate, urls: list[str]) -> subprocess.Popen[str]:
    """The simulator's process; it has been told what to do."""
    request = {
        "config": str(candidate.folder.config),
        "bundle": str(candidate.path),
        "links": urls,
        "num_episodes": candidate.num_episodes,
        "seed": candidate.seed,
        "latency_s": LATENCY_S,
        "noise": sensor_noise(candidate).tolist(),
    }
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", SIMULATOR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    process.stdin = None  # communicate() would flush it
    return process
