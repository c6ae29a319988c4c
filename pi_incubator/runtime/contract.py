"""What a policy promises to the robot that runs it: `contract.json`, read and checked.

Letters: D observation width, U targets (actuators).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._fields import Fields
from .errors import RuntimeBundleError

SCHEMA_VERSION = 1
MAX_TEXT_BYTES = 2**20  # of contract.json and of SHA256SUMS
MAX_DEPTH = 50  # of lists and objects inside each other
MAX_WIDTH = 2**22  # values of an observation, and of all states: 16 MB
MIN_HZ, MAX_HZ = 0.01, 100_000.0
LARGEST = 3.4028234663852886e38  # that float32 can hold
KNOWN_OPSETS = range(13, 24)
KINDS = ("sensor", "command")
LIMIT_TOLERANCE = 1e-6  # float32's, for a safe target that lies on a limit


@dataclass(frozen=True)
class Term:
    """A part of the observation: `width` values in `unit`; outside `low` to `high` they are out of range."""

    name: str
    width: int
    unit: str
    kind: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class State:
    """What the network remembers from one step to the next: `width` values, zeros at first."""

    name: str
    width: int


@dataclass(frozen=True)
class Joint:
    """An actuated joint: its target's limits, and the gains with which the policy learned to move it.

    Targets are in rad, m, N m or N, as the actuator takes them; `stiffness` and `damping` are None where it
    has no PD controller, and `max_rate_per_s` where its target may change at any rate.
    """

    name: str
    stiffness: float | None
    damping: float | None
    default_position_rad: float | None
    action_scale: float | None
    target_low: float | None
    target_high: float | None
    max_rate_per_s: float | None


@dataclass(frozen=True)
class OnnxFile:
    """The network's file in the bundle."""

    file: str
    sha256: str
    opset: int


@dataclass(frozen=True)
class Contract:
    """The checked contents of `contract.json`; `raw` is the parsed file, which has more (lineage, gates)."""

    name: str
    task: str
    network: str
    precision: str
    control_hz: float
    terms: tuple[Term, ...]
    states: tuple[State, ...]
    joints: tuple[Joint, ...]
    safe_target: tuple[float, ...]
    commands: tuple[str, ...]
    onnx: OnnxFile
    raw: dict[str, Any]

    @property
    def observation_width(self) -> int:
        """D."""
        return sum(term.width for term in self.terms)

    @property
    def num_targets(self) -> int:
        """U."""
        return len(self.joints)

    def joint_indices(self, robot_joints: Sequence[str]) -> list[int]:
        """Where each joint of the contract, in its order, stands among a robot's joints.

        `robot_positions[indices]` is in the policy's order; `robot_targets[indices] = targets` goes back.

        Raises:
            RuntimeBundleError: the robot does not have one of the joints.
        """
        missing = [joint.name for joint in self.joints if joint.name not in robot_joints]
        if missing:
            has = ", ".join(robot_joints)
            raise RuntimeBundleError(
                f"joints: the robot has no {', '.join(missing)} (it has {has}); "
                "name its joints as the contract does, or export for this robot"
            )
        return [list(robot_joints).index(joint.name) for joint in self.joints]


def read_contract(path: Path) -> Contract:
    """The contract in the file at `path`.

    Raises:
        RuntimeBundleError: it cannot be read, is of a newer version, or a field is missing or wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuntimeBundleError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_contract(data, str(path))


def parse_contract(data: bytes, where: str) -> Contract:
    """The contract in the bytes of a `contract.json`; `where` names the file in messages.

    Raises:
        RuntimeBundleError: as `read_contract`.
    """
    try:
        raw = parse_json(data)
    except ValueError as error:
        raise RuntimeBundleError(f"{where}: is not JSON ({error}); copy the bundle again") from None
    return check_contract(raw, where)


def parse_json(text: bytes | str) -> Any:
    """The value in a JSON text that is no larger and no deeper than a contract is.

    Raises:
        ValueError: it is no JSON, larger than `MAX_TEXT_BYTES`, or deeper than `MAX_DEPTH`.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"larger than {MAX_TEXT_BYTES} bytes")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("too deep") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return value
    raise ValueError(f"deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check_contract(raw: Any, where: str = "contract.json") -> Contract:
    """The contract in a parsed `contract.json`.

    Raises:
        RuntimeBundleError: it is of a newer version, or a field is missing or wrong.
    """
    fields = Fields(raw, f"{where}: ")
    version = fields.whole("schema_version")
    if version > SCHEMA_VERSION:
        raise RuntimeBundleError(
            f"{where}: schema_version: {version} is newer than this runtime's {SCHEMA_VERSION}; "
            "update the runtime, or export with the version of pi_incubator that it came from"
        )
    fields.objects_by_name("gates")  # whoever reads `raw` finds objects
    contract = Contract(
        name=fields.text("name"),
        task=fields.text("task"),
        network=fields.text("network"),
        precision=fields.text("precision"),
        control_hz=fields.number("control_hz"),
        terms=tuple(map(_term, fields.child("observation").objects("terms"))),
        states=tuple(State(state.text("name"), state.whole("width")) for state in fields.objects("states")),
        joints=tuple(map(_joint, fields.objects("joints"))),
        safe_target=fields.numbers("safe_target"),
        commands=fields.texts("commands"),
        onnx=_onnx(fields.child("onnx")),
        raw=raw,
    )
    _check_whole(contract, fields)
    return contract


def _term(fields: Fields) -> Term:
    low, high = _limits(fields, "low", "high")
    kind = fields.text("kind")
    if kind not in KINDS:
        raise fields.wrong("kind", kind, " or ".join(KINDS))
    return Term(fields.text("name"), fields.whole("width"), fields.text("unit"), kind, low, high)


def _joint(fields: Fields) -> Joint:
    low, high = _limits(fields, "target_low", "target_high")
    rate = fields.number_or_none("max_rate_per_s")
    if rate is not None and rate <= 0:
        raise fields.wrong("max_rate_per_s", rate, "above 0")
    return Joint(
        name=fields.text("name"),
        stiffness=fields.number_or_none("stiffness"),
        damping=fields.number_or_none("damping"),
        default_position_rad=fields.number_or_none("default_position_rad"),
        action_scale=fields.number_or_none("action_scale"),
        target_low=low,
        target_high=high,
        max_rate_per_s=rate,
    )


def _onnx(fields: Fields) -> OnnxFile:
    file, opset = fields.text("file"), fields.whole("opset")
    if Path(file).name != file or file in (".", ".."):
        raise fields.wrong("file", file, "a plain file name inside the bundle")
    if opset not in KNOWN_OPSETS:
        raise fields.wrong("opset", opset, f"from {KNOWN_OPSETS.start} to {KNOWN_OPSETS.stop - 1}")
    return OnnxFile(file, fields.text("sha256"), opset)


def _limits(fields: Fields, low_name: str, high_name: str) -> tuple[float | None, float | None]:
    low, high = fields.number_or_none(low_name), fields.number_or_none(high_name)
    if low is not None and high is not None and low > high:
        raise fields.wrong(low_name, low, f"at most {high_name} ({high:g})")
    return low, high


def _check_whole(contract: Contract, fields: Fields) -> None:
    """What only the fields together can get wrong."""
    if contract.control_hz <= 0:
        raise fields.wrong("control_hz", contract.control_hz, "above 0")
    if not MIN_HZ <= contract.control_hz <= MAX_HZ:
        raise fields.wrong("control_hz", contract.control_hz, f"from {MIN_HZ:g} to {MAX_HZ:g}")
    for name, entries in (
        ("observation.terms", contract.terms),
        ("joints", contract.joints),
        ("states", contract.states),
    ):
        names = [entry.name for entry in entries]
        if not names and name != "states":
            raise fields.wrong(name, names, "a list with at least one entry")
        if len(set(names)) < len(names):
            raise fields.wrong(name, names, "a list in which every name is another")
    width = fields.child("observation").whole("width")
    if width != contract.observation_width:
        raise fields.wrong("observation.width", width, f"the terms' sum, {contract.observation_width}")
    state_width = sum(state.width for state in contract.states)
    for name, total in (("observation.width", width), ("states", state_width)):
        if total > MAX_WIDTH:
            raise fields.wrong(name, total, f"at most {MAX_WIDTH} values")
    if len(contract.safe_target) != contract.num_targets:
        count = len(contract.safe_target)
        raise fields.wrong(
            "safe_target", f"{count} values", f"one value for each of {contract.num_targets} joints"
        )
    for joint, safe in zip(contract.joints, contract.safe_target, strict=True):
        low = -LARGEST if joint.target_low is None else max(joint.target_low, -LARGEST)
        high = LARGEST if joint.target_high is None else min(joint.target_high, LARGEST)
        if not low - LIMIT_TOLERANCE <= safe <= high + LIMIT_TOLERANCE:
            raise fields.wrong("safe_target", safe, f"within the limits of {joint.name}, {low:g} to {high:g}")
