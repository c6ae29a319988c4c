"""Re-run the last moments of a broken world in C MuJoCo, substep by substep: does it break, when, in what?

Every control step starts from the state that was recorded, not from where the one before it ended here. So a
difference between two engines is that of one control step, and pushes from outside are in it.

Letters: k control steps, nq positions, nv velocities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch

from envs_gpu.dump import Dump, read_dump
from envs_gpu.guards import Cause, name_causes
from envs_gpu.limits import Limits, reachable
from envs_gpu.physics.mujoco import world_model

Cell = str | int | float | None
_WARNINGS = {
    mujoco.mjtWarning.mjWARN_INERTIA: "singular inertia",
    mujoco.mjtWarning.mjWARN_CONTACTFULL: "contacts full",
    mujoco.mjtWarning.mjWARN_CNSTRFULL: "constraints full",
    mujoco.mjtWarning.mjWARN_BADQPOS: "bad qpos",
    mujoco.mjtWarning.mjWARN_BADQVEL: "bad qvel",
    mujoco.mjtWarning.mjWARN_BADQACC: "bad qacc",
    mujoco.mjtWarning.mjWARN_BADCTRL: "bad ctrl",
}


@dataclass(frozen=True)
class Moment:
    """One control step, replayed."""

    age: int
    """Control steps before the last one: 0 is the step that broke the world."""
    time_s: float
    """Simulated time since the world's reset at its start."""
    given: str
    """What was not finite before it started: `state`, `controls`, or nothing."""
    substep: int | None
    """The substep, counted from 1, after which C's state was bad; None where it stayed sound."""
    bad_joints: tuple[str, ...]
    """Where it was bad then."""
    velocity: float
    """The largest, m/s or rad/s, over the substeps until then."""
    velocity_at: str
    acceleration: float
    """The largest, m/s² or rad/s²."""
    acceleration_at: str
    penetration_m: float
    """The deepest."""
    penetration_of: str
    warnings: tuple[str, ...]
    warned_in: int | None
    """The first substep with one of them."""
    difference: float | None
    """The largest between C and the record at its end, in qpos and qvel; None where either is not finite."""
    difference_at: str


@dataclass(frozen=True)
class Replay:
    """What C MuJoCo makes of a dump."""

    dump: Dump
    moments: tuple[Moment, ...]
    """The oldest first."""
    control_dt: float
    """Simulated seconds of a control step."""

    @property
    def broken(self) -> Moment | None:
        """The first control step whose state goes bad in C."""
        return next((moment for moment in self.moments if moment.substep), None)

    @property
    def verdict(self) -> str:
        """What happened, in a sentence."""
        header, causes = self.dump.header, name_causes(self.dump.causes)
        first = next((moment for moment in self.moments if moment.given), None)
        if first:
            where = f"before control step {-first.age} started, at {first.time_s:.4g} s"
            blame = "the policy, not the physics" if first.given == "controls" else "see the steps before"
            return f"what was impossible came first in the {first.given}, {where}: {blame}"
        if (moment := self.broken) and moment.substep:
            time_s = moment.time_s + self.control_dt * moment.substep / header["substeps"]
            return (
                f"breaks in C MuJoCo too: control step {-moment.age}, substep {moment.substep} of "
                f"{header['substeps']}, {time_s:.4g} s, in {', '.join(moment.bad_joints[:4])}"
            )
        warned = next((moment for moment in self.moments if moment.warned_in), None)
        if warned:
            return (
                f"C MuJoCo warns ({', '.join(warned.warnings)}) in control step {-warned.age}, substep "
                f"{warned.warned_in} of {header['substeps']}; its state is finite, but not to be trusted"
            )
        if self.dump.causes == Cause.ACTION:
            return "the physics does not break: the policy's action was not finite, and clipping hid it"
        known = [moment for moment in self.moments if moment.difference is not None]
        apart = max(known, key=lambda moment: moment.difference or 0.0, default=None)
        most = f"; it is at most {apart.difference:.3g} away, in {apart.difference_at}" if apart else ""
        return f"does not break in C MuJoCo, where {header['backend']} broke the {causes}{most}"


def replay(path: str | Path) -> Replay:
    """Re-run the control steps of the dump `path` in C MuJoCo.

    Raises:
        DumpError: see `envs_gpu.dump.read_dump`.
    """
    dump, model = read_dump(path)
    model = world_model(model, tuple(dump.fields))
    limits = dump.limits or reachable(model, None, 0.0)
    number = len(dump.before["qpos"])
    moments = tuple(_replay_step(model, dump, index, limits) for index in range(number))
    return Replay(dump, moments, model.opt.timestep * dump.header["substeps"])


def report(path: str | Path) -> tuple[str, dict[str, dict[str, Cell]], str]:
    """Title, rows (control step -> column -> value) and verdict of a dump, for a table.

    Raises:
        DumpError: see `envs_gpu.dump.read_dump`.
    """
    replayed = replay(path)
    header = replayed.dump.header
    title = (
        f"{header['task']} on {header['backend']}: world {header['world']} broke in control step "
        f"{header['step']} ({name_causes(replayed.dump.causes)}); replayed in C MuJoCo {mujoco.__version__}"
    )
    rows = {str(-moment.age): _row(moment, header["substeps"]) for moment in replayed.moments}
    return title, rows, replayed.verdict


def _row(moment: Moment, substeps: int) -> dict[str, Cell]:
    broke = f"substep {moment.substep} of {substeps}" if moment.substep else "no"
    return {
        "time s": moment.time_s,
        "breaks": f"{moment.given} before" if moment.given else broke,
        "velocity": moment.velocity,
        "of": moment.velocity_at,
        "acceleration": moment.acceleration,
        "of ": moment.acceleration_at,
        "depth m": moment.penetration_m,
        "between": moment.penetration_of,
        "warnings": ", ".join(moment.warnings),
        "C - record": moment.difference,
    }


def _replay_step(model: mujoco.MjModel, dump: Dump, index: int, limits: Limits) -> Moment:
    before = {name: value[index] for name, value in dump.before.items()}
    is_last = index + 1 == len(dump.before["qpos"])
    after = dump.after if is_last else {name: value[index + 1] for name, value in dump.before.items()}
    data = _start(model, before)
    given = "state" if _bad_joints(model, data, limits) else ""
    if not given and not np.isfinite(data.ctrl).all():
        given = "controls"
    dofs, coordinates = _dof_names(model), _qpos_names(model)
    velocity, acceleration, depth = _Largest(), _Largest(), _Largest()
    substep: int | None = None
    warned_in: int | None = None
    for number in range(1, int(dump.header["substeps"]) + 1):
        velocity.see(np.abs(data.qvel), dofs)
        mujoco.mj_step(model, data)
        acceleration.see(np.abs(data.qacc), dofs)
        depth.see(-data.contact.dist, list(_pair_names(model, data)))
        if warned_in is None and any(data.warning[kind].number for kind in _WARNINGS):
            warned_in = number
        if bad := _bad_joints(model, data, limits):
            substep = number
            break
        velocity.see(np.abs(data.qvel), dofs)
    difference = _Largest()
    if substep is None:
        difference.see(np.abs(data.qpos - after["qpos"]), coordinates)
        difference.see(np.abs(data.qvel - after["qvel"]), dofs)
    is_known = substep is None and all(np.isfinite(after[name]).all() for name in ("qpos", "qvel"))
    return Moment(
        age=len(dump.before["qpos"]) - 1 - index,
        time_s=float(before["time"]),
        given=given,
        substep=substep,
        bad_joints=bad,
        velocity=velocity.value,
        velocity_at=velocity.name,
        acceleration=acceleration.value,
        acceleration_at=acceleration.name,
        penetration_m=max(depth.value, 0.0),
        penetration_of=depth.name if depth.value > 0 else "",
        warnings=tuple(text for kind, text in _WARNINGS.items() if data.warning[kind].number),
        warned_in=warned_in,
        difference=difference.value if is_known else None,
        difference_at=difference.name,
    )


class _Largest:
    """The largest of named numbers seen so far; NaN counts as infinite."""

    def __init__(self) -> None:
        self.value, self.name = 0.0, ""

    def see(self, values: np.ndarray, names: list[str]) -> None:
        values = np.where(np.isnan(values), np.inf, values)
        if len(values) and values.max() > self.value:
            index = int(values.argmax())
            self.value, self.name = float(values[index]), names[index]


def _start(model: mujoco.MjModel, before: dict[str, np.ndarray]) -> mujoco.MjData:
    """Data in a recorded state, with nothing else left over: the backend too starts the solver from zero."""
    data = mujoco.MjData(model)
    for name in ("qpos", "qvel", "act", "ctrl"):
        if name in before:
            getattr(data, name)[:] = before[name]
    data.time = float(before["time"])
    return data


def _bad_joints(model: mujoco.MjModel, data: mujoco.MjData, limits: Limits) -> tuple[str, ...]:
    """The joints whose position or velocity is impossible, or not a number."""
    qpos, speed = torch.from_numpy(data.qpos), torch.from_numpy(data.qvel).abs()
    possible = (qpos > limits.qpos_low) & (qpos < limits.qpos_high), speed < limits.speed
    names = _qpos_names(model), _dof_names(model)
    found = [
        name
        for of_kind, holds in zip(names, possible, strict=True)
        for name, good in zip(of_kind, holds.tolist(), strict=True)
        if not good
    ]
    return tuple(dict.fromkeys(name.partition("[")[0] for name in found))


def _dof_names(model: mujoco.MjModel) -> list[str]:
    """A joint's name for each of its velocities, numbered where there are several."""
    return _coordinate_names(model, model.jnt_dofadr, model.nv)


def _qpos_names(model: mujoco.MjModel) -> list[str]:
    return _coordinate_names(model, model.jnt_qposadr, model.nq)


def _coordinate_names(model: mujoco.MjModel, addresses: np.ndarray, total: int) -> list[str]:
    names: list[str] = []
    for joint, (begin, end) in enumerate(zip(addresses, [*addresses[1:], total], strict=True)):
        name = model.joint(joint).name or f"joint {joint}"
        names += [f"{name}[{i}]" for i in range(end - begin)] if end - begin > 1 else [name]
    return names


def _pair_names(model: mujoco.MjModel, data: mujoco.MjData) -> Iterator[str]:
    for pair in data.contact.geom:
        yield " and ".join(model.geom(geom).name or f"geom {geom}" for geom in pair)
