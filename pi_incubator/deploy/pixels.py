"""Export of a policy that sees pixels: observations in, actions out, one file and no bundle.

Letters: B batch, A actions, S width of the state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from envs_gpu.interface import identity_targets
from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.bundle import write_file
from pi_incubator.deploy.contract import Origin
from pi_incubator.deploy.graph import MEASURED
from pi_incubator.deploy.program import to_bytes, to_onnx
from pi_incubator.deploy.record import require_within
from pi_incubator.deploy.session import ExportedPixels, open_session
from pi_incubator.errors import UserError
from pi_incubator.policies.policy import Policy
from pi_incubator.version import __version__


def export_pixels(
    cfg: ExperimentConfig,
    policy: Policy,
    spec: EnvSpec,
    seen: Mapping[str, Tensor],
    origin: Origin,
    path: Path,
) -> float:
    """Write `observation` `[B, C, H, W]` uint8 -> `action` `[B, A]`, any B; returns the difference found.

    A policy of several observation groups takes each under its name, as the env gives it: vectors `[B, D]`
    float32 beside `pixels`. A policy with a state also takes `hidden_in` `[B, S]`, zeros at the start, and
    gives `hidden_out`. Its states are checked at random numbers in (-1, 1).

    Args:
        cfg: reads `deployment`.
        policy: is not changed; it may live on any device.
        spec: of the env that it was trained in.
        seen: recorded observations that the file is checked on, group -> `[K, ...]`.
        origin: goes into the file's metadata.
        path: the file.

    Raises:
        UserError: no robot measures what the policy reads, the file cannot be written, or it does not act
            like the policy.
    """
    for group in policy.groups:
        if group not in MEASURED:
            problem = f"the policy acts on the group {group!r}, which no robot measures"
            raise UserError(f"{problem}; distil it into one that acts on policy and pixels")
    module, width = _Graph(copy.deepcopy(policy.as_onnx()).cpu().eval()), policy.state_width
    groups = policy.groups
    example = [torch.zeros(2, *spec.obs_shape(group), dtype=spec.obs_dtype(group)) for group in groups]
    inputs, outputs = list(groups) if len(groups) > 1 else ["observation"], ["action"]
    if width:
        example.append(torch.zeros(2, width))
        inputs, outputs = [*inputs, "hidden_in"], [*outputs, "hidden_out"]
    model = to_onnx(module, example, inputs, outputs, cfg.deployment.opset)
    content = to_bytes(model, _properties(spec, groups, origin))
    onnx.checker.check_model(content)
    exported = ExportedPixels(open_session(content, str(path)))
    state = torch.rand(len(seen["pixels"]), width, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    unit = identity_targets(torch.tensor(spec.action_low), torch.tensor(spec.action_high)).unit
    differences = []
    for count in (len(state), 1):
        batch, before = {group: seen[group][:count].cpu() for group in groups}, state[:count]
        action, after = exported.mean(batch, before)
        with torch.no_grad():
            expected = module(*batch.values(), before) if width else (module(*batch.values()), before)
        differences.append(((action - expected[0]).abs() / unit).max())
        if width:
            differences.append((after - expected[1]).abs().max())
    difference = torch.stack(differences).max().item()  # a NaN in either stays one
    require_within(difference, cfg.deployment.tolerance, str(path))
    write_file(path, content)
    return difference


class _Graph(nn.Module):
    """A policy's graph, with further groups or a state, if it has them, as `to_onnx` takes it."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, *others: Tensor) -> Any:
        return self.policy(observation, *others)


def _properties(spec: EnvSpec, groups: tuple[str, ...], origin: Origin) -> dict[str, str]:
    return {
        "task": spec.name,
        "observation": ",".join(groups),
        "joint_names": ",".join(spec.joint_names),
        "action_low": ",".join(f"{value:g}" for value in spec.action_low),
        "action_high": ",".join(f"{value:g}" for value in spec.action_high),
        "control_hz": f"{spec.control_hz:g}",
        "config_sha256": origin.config_sha256,
        "git_commit": origin.git_commit or "",
        "pi_incubator_version": __version__,
    }
