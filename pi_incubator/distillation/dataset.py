"""Recorded demonstrations: one safetensors file, from which nothing is ever unpickled.

    observation.GROUP   [S, D] float32, or pixels [S, C, H, W] uint8: raw, each group that the student read
    mean, std           [S, A] float32: the teacher's action distribution, not clipped
    value               [S]    float32: the teacher's, where it has a value function
    features            [S, F] float32: the last hidden layer of its head, where `feature_coef` was above 0

The metadata says of which robot they are. Letters: S samples, A actions, D observation width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from envs_gpu.vec_env import EnvSpec
from pi_incubator.distillation.buffer import OBSERVATION, LabelBuffer
from pi_incubator.errors import UserError

FORMAT = 1
AGAIN = "record it again with pi-distill --record"


def write_dataset(buffer: LabelBuffer, spec: EnvSpec, path: Path) -> None:
    """Write all that `buffer` holds.

    Args:
        buffer: as `Collector.collect` fills it.
        spec: of the worlds that they are from.
        path: the file.

    Raises:
        UserError: it cannot be written, or there is nothing to write.
    """
    if not len(buffer):
        raise UserError(f"{path}: nothing was collected; set another experiment.name to begin a new run")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in buffer.held().items()}
    try:
        save_file(tensors, path, metadata={"format": str(FORMAT), **_robot(spec)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); name another file") from None


def read_dataset(
    path: str | Path, spec: EnvSpec, groups: Iterable[str], has_value: bool, features: int | None
) -> LabelBuffer:
    """The demonstrations in `path`, on the device of `spec`.

    Args:
        path: the file.
        spec: of the worlds that the student is for.
        groups: the observation groups that the student reads.
        has_value: whether the value term is used.
        features: width F that the feature term needs; None without one.

    Raises:
        UserError: it is missing, damaged, of another robot, or lacks what is needed.
    """
    tensors, metadata = _read(Path(path))
    _check_format(path, metadata)
    for name, value in _robot(spec).items():
        if metadata.get(name) != value:
            problem = f"was recorded with {name} = {metadata.get(name)}, the student has {value}"
            raise UserError(f"{path}: {problem}; name a file of the same robot")
    shapes = {OBSERVATION + group: (spec.obs_shape(group), spec.obs_dtype(group)) for group in groups}
    shapes |= dict.fromkeys(("mean", "std"), ((spec.action_dim,), torch.float32))
    if has_value:
        shapes["value"] = ((), torch.float32)
    if features is not None:
        shapes["features"] = ((features,), torch.float32)
    if missing := shapes.keys() - tensors.keys():
        raise UserError(f"{path}: has no {min(missing)!r}, which this student needs; {AGAIN}")
    number = tensors["mean"].numel() // spec.action_dim
    if not number:
        raise UserError(f"{path}: holds no samples; {AGAIN}")
    for name, (shape, dtype) in shapes.items():
        _check_tensor(path, name, tensors[name], (number, *shape), dtype)
    if not (tensors["std"] > 0).all():
        raise UserError(f"{path}: 'std' holds numbers that are not positive; {AGAIN}")
    buffer = LabelBuffer(number, spec.device)
    buffer.add({name: tensors[name].to(spec.device) for name in shapes})
    return buffer


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path}: file not found; {AGAIN}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: is no whole safetensors file ({error}); {AGAIN}") from None


def _check_format(path: str | Path, metadata: dict[str, str]) -> None:
    version = metadata.get("format", "")
    if not version.isdecimal():
        raise UserError(f"{path}: holds no demonstrations; {AGAIN}")
    if int(version) > FORMAT:
        problem = f"has format {version}, this version reads {FORMAT}"
        raise UserError(f"{path}: {problem}; upgrade pi_incubator")


def _check_tensor(
    path: str | Path, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Raise UserError unless `tensor` is of this form and finite."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        has = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        needed = f"{str(dtype).removeprefix('torch.')} {list(shape)}"
        problem = f"has {name!r} of {has}, the student needs {needed}"
        raise UserError(f"{path}: {problem}; name a file that was recorded in the same worlds")
    if not tensor.isfinite().all():
        raise UserError(f"{path}: {name!r} holds numbers that are not finite; {AGAIN}")


def _robot(spec: EnvSpec) -> dict[str, str]:
    """What makes actions mean the same, as text."""
    return {
        "joint_names": ",".join(spec.joint_names),
        "action_low": json.dumps(spec.action_low),
        "action_high": json.dumps(spec.action_high),
        "control_hz": f"{spec.control_hz:g}",
    }
