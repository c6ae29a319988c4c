"""The gate `robustness`: what is left of the return where the robot is not the model, as a picture.

All worlds are in one batch of C MuJoCo, each with its own mass, friction, delay and pushes for good. The file
itself acts in them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from envs_gpu.disturbance import Disturbance
from envs_gpu.draw import Draw
from envs_gpu.randomize import Randomization
from pi_incubator.deploy.gates._base import CPU, Candidate, Result, kept_share
from pi_incubator.deploy.gates._heat_map import Panel, draw_panels
from pi_incubator.deploy.session import ExportedPolicy, Session
from pi_incubator.envs import evaluation_env
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.registry import gate

LIMIT = 0.8
"""Share of the return that is to be left, on average over the inner cells."""
PICTURE = "robustness.png"
WORLDS_PER_CELL = 4
PUSHES = Randomization(pushes=Draw(low=-1.0, high=1.0, per="interval", interval_s=2.0))


@dataclass(frozen=True)
class Axis:
    """One thing that is changed."""

    knob: str
    """The field of `Disturbance`."""
    label: str
    levels: tuple[float, ...]
    inner: tuple[float, ...]
    """Those that count: what a robot of this kind can be expected to be off by."""
    unit: float = 1.0
    """What a level of one is in the knob's own unit."""


MASS = Axis("mass", "mass (factor)", (0.7, 0.85, 1.0, 1.15, 1.3), (0.85, 1.0, 1.15))
FRICTION = Axis("friction", "friction (factor)", (0.4, 0.7, 1.0, 1.3, 1.6), (0.7, 1.0, 1.3))
DELAY = Axis("delay_s", "delay (ms)", (0.0, 10.0, 20.0, 30.0, 40.0), (0.0, 10.0, 20.0), unit=1e-3)
PUSH = Axis("push", "pushes (± m/s and rad/s, every 2 s)", (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.25, 0.5))
GRIDS = ((MASS, FRICTION), (DELAY, PUSH))
"""Columns and rows of each panel."""


@gate("robustness")
def robustness(candidate: Candidate) -> Result:
    """Mean share of the nominal return that is left over the inner cells of both panels."""
    cells = [
        ({across: level, up: height}, across, up)
        for across, up in GRIDS
        for height, level in product(up.levels, across.levels)
    ]
    returns = _returns(candidate, [levels for levels, _, _ in cells])
    shares = [kept_share(float(value), candidate.reference) for value in returns]
    inner = [
        share
        for share, (levels, _, _) in zip(shares, cells, strict=True)
        if all(level in axis.inner for axis, level in levels.items())
    ]
    value = float(np.mean(inner))
    panels, start = [], 0
    for across, up in GRIDS:
        stop = start + len(up.levels) * len(across.levels)
        grid = np.array(shares[start:stop]).reshape(len(up.levels), len(across.levels))
        panels.append(Panel(across.label, up.label, across.levels, up.levels, across.inner, up.inner, grid))
        start = stop
    title = f"{candidate.bundle.contract.name}: share of the return that is left"
    details = {
        "worst_inner_cell": min(inner),
        "worst_cell": min(shares),
        "nominal_return": candidate.reference,
        "episodes_per_cell": WORLDS_PER_CELL,
        "picture": PICTURE,
    }
    picture = draw_panels(panels, title)
    return Result(value >= LIMIT, value, LIMIT, "share of the return", details, {PICTURE: picture})


def _returns(candidate: Candidate, cells: list[dict[Axis, float]]) -> np.ndarray:
    """Mean return of every cell's worlds."""
    contract = candidate.bundle.contract
    rest = torch.tensor(contract.safe_target, dtype=torch.float64)
    nominal = Disturbance.none(len(cells), rest)
    changed = {
        name: torch.tensor(
            [
                next((level * axis.unit for axis, level in cell.items() if axis.knob == name), default)
                for cell in cells
            ],
            dtype=torch.float64,
        ).repeat_interleave(WORLDS_PER_CELL)
        for name, default in (("mass", 1.0), ("friction", 1.0), ("delay_s", 0.0), ("push", 0.0))
    }
    disturbance = replace(nominal, **changed)
    num_worlds = len(cells) * WORLDS_PER_CELL
    env = evaluation_env(candidate.cfg_in_c, num_worlds, CPU, randomization=PUSHES, disturbance=disturbance)
    try:
        policy = ExportedPolicy(Session(candidate.bundle.onnx), env.interface())
        episodes = evaluate(env, policy, num_worlds, candidate.seed).episodes["return"]
    finally:
        env.close()
    return episodes.view(len(cells), WORLDS_PER_CELL).mean(1).numpy()
