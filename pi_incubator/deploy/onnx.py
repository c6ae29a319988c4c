"""Export a policy to ONNX, and check the file against the policy it came from.

Letters: B batch, D observation width, A actions.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator import __version__
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.provenance import config_hash, git_state

INPUT, OUTPUT = "observation", "action"


class Exportable(Protocol):
    """What a policy must offer to be exported."""

    actor_group: str
    """The observation group that it acts on."""

    def as_onnx(self) -> nn.Module:
        """Raw observation of the actor's group -> action within the env's limits `[B, A]`."""


def export_onnx(
    policy: Exportable, spec: EnvSpec, path: Path, *, opset: int, metadata: Mapping[str, str]
) -> None:
    """Write the deterministic policy as one ONNX file: `observation` `[B, D]` -> `action` `[B, A]`, any B.

    The observation of a policy that sees pixels is `[B, C, H, W]` uint8.

    Args:
        policy: is not changed; it may live on any device.
        spec: of the env that the policy was trained in.
        path: the file to write.
        opset: ONNX operator set.
        metadata: further properties beside those of `spec_metadata`.

    Raises:
        UserError: the file cannot be written.
    """
    module = copy.deepcopy(policy.as_onnx()).cpu().eval()
    group = policy.actor_group
    example = torch.zeros(2, *spec.obs_shape(group), dtype=spec.obs_dtype(group))
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only the older exporter returns None
    program.model.metadata_props.update({**spec_metadata(spec), "observation": group, **metadata})
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter's stack traces, which name local files
    try:
        program.save(path, external_data=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from None


def export_checked(
    cfg: ExperimentConfig, policy: Exportable, spec: EnvSpec, observations: Tensor, path: Path
) -> float:
    """Export what `cfg` trained as `cfg.deployment` says; returns the difference that `check_onnx` found.

    Raises:
        UserError: the file cannot be written, or does not act like the policy.
    """
    git = git_state()
    metadata = {"config_sha256": config_hash(cfg), "pi_incubator_version": __version__}
    if git:
        metadata |= {"git_commit": git.commit, "git_dirty": str(git.dirty).lower()}
    export_onnx(policy, spec, path, opset=cfg.deployment.opset, metadata=metadata)
    return check_onnx(path, policy, observations, cfg.deployment.tolerance)


def spec_metadata(spec: EnvSpec) -> dict[str, str]:
    """What a controller must know to run the policy; lists are separated by commas, as mjlab writes them."""
    return {
        "task": spec.name,
        "joint_names": ",".join(spec.joint_names),
        "action_low": _join(spec.action_low),
        "action_high": _join(spec.action_high),
        "control_hz": f"{spec.control_hz:g}",
    }


def check_onnx(path: Path, policy: Exportable, observations: Tensor, tolerance: float) -> float:
    """Run the exported file and the policy on `observations` `[count, ...]`, all at once and the first alone.

    Returns:
        The largest absolute difference between their actions.

    Raises:
        UserError: it is above `tolerance`, or not a number.
    """
    session = _session(path)
    module = copy.deepcopy(policy.as_onnx()).cpu().eval()
    batches = (observations.cpu(), observations[:1].cpu())
    with torch.no_grad():
        differences = [(_run(session, batch) - module(batch)).abs().max() for batch in batches]
    difference = torch.stack(differences).max().item()  # a NaN in either stays one
    if not difference <= tolerance:
        fix = "do not deploy this file; set deployment.tolerance higher only if you know why they differ"
        problem = f"its actions differ from the policy's by {difference:.3g}, more than {tolerance:.3g}"
        raise UserError(f"{path}: {problem}; {fix}")
    return difference


def load_onnx(path: Path, group: str = "policy") -> Callable[[TensorDict], Tensor]:
    """The exported policy, which acts on `group`, as a function from groups to actions, for `evaluate`."""
    session = _session(path)

    def act(obs: TensorDict) -> Tensor:
        observation = obs[group]
        return _run(session, observation.cpu()).to(observation.device)

    return act


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Policies are small: more threads only spin beside those that step the physics.
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions share no base class of their own.
    except Exception as error:
        fix = "export the run again with pi-export"
        raise UserError(f"{path}: cannot be run by onnxruntime ({error}); {fix}") from None


def _run(session: onnxruntime.InferenceSession, observation: Tensor) -> Tensor:
    (action,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(observation.numpy())})
    return torch.from_numpy(action)


def _join(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its own developers much that no user can act on."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
