"""The gate `sim_to_sim`: the exported file does its task in another simulator, late and with noisy sensors.

The simulator is C MuJoCo in a process of its own, and knows the policy only as packets on links in shared
memory: one link and one runtime for each robot, as a robot would have. Both sides take turns, one control
period of simulated time each, so a slow machine changes nothing.

Letters: T steps, N worlds, D width of the readings.
"""

from __future__ import annotations

import json
import math
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
"""Smallest share of the training simulator's return that passes."""
LATENCY_S = 0.005
"""From a measurement until the motors get the target for it: the bus in both directions, and the policy.
Rounded up to whole physics timesteps."""
NOISE_SHARE = 0.01
"""Noise of a sensor whose term declares none, in standard deviations of its readings."""
MAX_ROBOTS = 32
WAIT_S = 0.2
SIMULATOR = "pi_incubator.deploy.gates._simulator"


@gate("sim_to_sim")
def sim_to_sim(candidate: Candidate) -> Result:
    """Mean return of the bundle in C MuJoCo, beside that of the policy in torch where it was trained."""
    found, flagged_share = _run(candidate)
    share = -math.inf if found["return"] is None else kept_share(found["return"], candidate.reference)
    details = {
        "return": found["return"],
        "training_simulator_return": candidate.reference,
        "episodes": candidate.num_episodes,
        "broken_episodes": found["broken_episodes"],
        "latency_ms": found["latency_ms"],
        "flagged_share": flagged_share,
    }
    passed = share >= LIMIT
    if not passed and (exploded := _explosion(found, candidate.num_episodes)):
        details["error"] = exploded
    return Result(passed, share, LIMIT, "share of the return", details)


def _explosion(found: dict[str, Any], num_episodes: int) -> str:
    """What to say where the engine blew up, which a low return does not tell; empty where it did not."""
    fix = "lower the model's timestep, or the targets that the policy gives"
    if found["return"] is None:
        return f"C MuJoCo blew up, so there is no return: {found['broken']}; {fix}"
    if not found["broken_episodes"]:
        return ""
    return f"C MuJoCo blew up in {found['broken_episodes']} of {num_episodes} episodes; {fix}"


def sensor_noise(candidate: Candidate) -> Array:
    """Half the width `[D]` of the uniform noise on each reading; commands have none."""
    terms = [term for term in candidate.interface.terms if term.kind != "last_action"]
    ends = np.cumsum([term.width for term in terms])
    spreads = np.split(candidate.recording.readings.std((0, 1)), ends[:-1])
    return np.concatenate(
        [
            NOISE_SHARE * spread if term.noise is None else np.full(term.width, term.noise)
            for term, spread in zip(terms, spreads, strict=True)
        ]
    )


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
