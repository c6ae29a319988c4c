"""The contract: what a robot must send and will be sent, beside the file that computes it.

It is a plain dict of JSON types, which `docs/deploy.md` describes: whoever reads it needs nothing of ours.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from envs_gpu.interface import PolicyInterface, Term
from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.graph import State
from pi_incubator.version import __version__

SCHEMA_VERSION = 1
Contract = dict[str, Any]
OUTSIDE = ("onnx", "gates")
"""What only the contract's own file holds: the hash of the ONNX file, and what was found out about it."""


@dataclass(frozen=True)
class Origin:
    """The training that a policy comes from."""

    config_sha256: str
    policy_sha256: str
    """Of the checkpoint's file of weights."""
    git_commit: str | None
    git_dirty: bool | None
    training_return: float | None
    """Mean return of the evaluation at the run's end."""


def make_contract(
    cfg: ExperimentConfig,
    spec: EnvSpec,
    interface: PolicyInterface,
    states: tuple[State, ...],
    normalizer: nn.Module,
    origin: Origin,
    precision: str,
) -> Contract:
    """The contract without its `onnx` entry, and with no gate that has run."""
    sensed = [term for term in interface.terms if term.kind != "last_action"]
    safe = interface.targets.offset.clamp(interface.targets.low, interface.targets.high)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": cfg.experiment.name,
        "task": spec.name,
        "network": cfg.network.name,
        "precision": precision,
        "control_hz": short(spec.control_hz),
        "observation": {
            "width": sum(term.width for term in sensed),
            "terms": [_term_entry(term) for term in sensed],
        },
        "states": [state._asdict() for state in states],
        "joints": _joint_entries(interface, cfg.deployment.max_rate_per_s),
        "safe_target": numbers(safe),
        "commands": list(interface.commands),
        "normalizer_sha256": normalizer_hash(normalizer),
        "config_sha256": origin.config_sha256,
        "policy_sha256": origin.policy_sha256,
        "git_commit": origin.git_commit,
        "git_dirty": origin.git_dirty,
        "training_return": None if origin.training_return is None else short(origin.training_return),
        "pi_incubator_version": __version__,
        "gates": {},
    }


def metadata(contract: Contract) -> dict[str, str]:
    """What the ONNX file says of itself: the contract, and the keys that mjlab's controllers read."""
    joints = contract["joints"]
    properties = {
        "contract": to_json({key: value for key, value in contract.items() if key not in OUTSIDE}),
        "joint_names": _join(joint["name"] for joint in joints),
        "default_joint_pos": _join(contract["safe_target"]),
        "command_names": _join(contract["commands"]),
        "observation_names": _join(term["name"] for term in contract["observation"]["terms"]),
        "action_scale": _join(joint["action_scale"] for joint in joints),
    }
    if all(joint["stiffness"] is not None for joint in joints):
        properties["joint_stiffness"] = _join(joint["stiffness"] for joint in joints)
        properties["joint_damping"] = _join(joint["damping"] for joint in joints)
    return properties


def to_json(contract: Contract) -> str:
    """As `contract.json` holds it: the same text for the same contract."""
    return json.dumps(contract, indent=2, sort_keys=True, allow_nan=False) + "\n"


def normalizer_hash(normalizer: nn.Module) -> str | None:
    """SHA-256 over a normalizer's mean and standard deviation (float32, little-endian); None without one."""
    state = normalizer.state_dict()
    if "mean" not in state:
        return None
    values = (state[name].cpu().numpy().astype("<f4").tobytes() for name in ("mean", "std"))
    return hashlib.sha256(b"".join(values)).hexdigest()


def short(value: float) -> float:
    """The shortest number that is the same in float32: 0.1 rather than 0.10000000149011612."""
    return float(str(np.float32(value)))


def numbers(values: Tensor) -> list[float]:
    """A list of `short` numbers."""
    return [short(value) for value in values.tolist()]


def _term_entry(term: Term) -> Contract:
    low, high = (None if limit is None else short(limit) for limit in (term.low, term.high))
    return {
        "name": term.name,
        "width": term.width,
        "unit": term.unit,
        "kind": term.kind,
        "low": low,
        "high": high,
    }


def _joint_entries(interface: PolicyInterface, max_rate_per_s: float | None) -> list[Contract]:
    targets = interface.targets
    columns = (targets.offset, targets.scale, targets.low, targets.high)
    return [
        {
            "name": servo.joint,
            "stiffness": None if servo.stiffness is None else short(servo.stiffness),
            "damping": None if servo.damping is None else short(servo.damping),
            "default_position_rad": offset if servo.stiffness is not None else None,
            "action_scale": scale,
            "target_low": low if math.isfinite(low) else None,
            "target_high": high if math.isfinite(high) else None,
            "max_rate_per_s": max_rate_per_s,
        }
        for servo, offset, scale, low, high in zip(interface.servos, *map(numbers, columns), strict=True)
    ]


def _join(values: Any) -> str:
    return ",".join(str(value) for value in values)
