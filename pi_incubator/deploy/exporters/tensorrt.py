"""The target `tensorrt`: the ONNX bundle, and the script that builds its engine where it will run."""

from __future__ import annotations

from pathlib import Path

from pi_incubator.deploy.artifact import Artifact
from pi_incubator.deploy.bundle import BUILD_ENGINE, write_folder
from pi_incubator.deploy.exporters.onnx import onnx_files
from pi_incubator.registry import exporter

TEMPLATES = Path(__file__).parents[1] / "templates"


def tensorrt_files(artifact: Artifact) -> dict[str, bytes]:
    """The ONNX bundle's files and the build script, which needs nothing but them."""
    return {**onnx_files(artifact), BUILD_ENGINE: (TEMPLATES / BUILD_ENGINE).read_bytes()}


@exporter("tensorrt")
def export(artifact: Artifact, out: Path) -> Path:
    """Write the bundle as the folder `out`; no engine is built here, see `templates/build_engine.py`."""
    return write_folder(tensorrt_files(artifact), out)
