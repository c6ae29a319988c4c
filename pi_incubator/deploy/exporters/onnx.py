"""The target `onnx`: the file and its contract, for onnxruntime anywhere."""

from __future__ import annotations

from pathlib import Path

from pi_incubator.deploy.artifact import Artifact
from pi_incubator.deploy.bundle import CONTRACT, ONNX, write_folder
from pi_incubator.registry import exporter


def onnx_files(artifact: Artifact) -> dict[str, bytes]:
    """What every bundle holds."""
    return {ONNX: artifact.model, CONTRACT: artifact.contract_json}


@exporter("onnx")
def export(artifact: Artifact, out: Path) -> Path:
    """Write the bundle as the folder `out`."""
    return write_folder(onnx_files(artifact), out)
