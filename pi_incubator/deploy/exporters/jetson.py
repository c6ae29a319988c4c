"""The target `jetson`: all that a robot's computer needs, as one tar.gz."""

from __future__ import annotations

from pathlib import Path

from pi_incubator import runtime
from pi_incubator.deploy.artifact import Artifact
from pi_incubator.deploy.bundle import write_archive
from pi_incubator.deploy.exporters.tensorrt import TEMPLATES, tensorrt_files
from pi_incubator.registry import exporter

PACKAGE = "runtime/pi_runtime"
"""Where the runtime lies in the bundle, and what it is called there."""
SERVICE, README = "pi-policy.service", "README.md"


def jetson_files(artifact: Artifact) -> dict[str, bytes]:
    """The TensorRT bundle's files, the runtime, a systemd unit and how to install it all."""
    fields = {key: artifact.contract[key] for key in ("name", "task", "control_hz", "precision")}
    readme = (TEMPLATES / README).read_text(encoding="utf-8").format(**fields)
    service = (TEMPLATES / SERVICE).read_bytes()
    return {**tensorrt_files(artifact), **runtime_files(), SERVICE: service, README: readme.encode()}


def runtime_files() -> dict[str, bytes]:
    """The source of `pi_incubator.runtime`, which imports nothing else of ours."""
    root = Path(runtime.__path__[0])
    return {
        f"{PACKAGE}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*.py"))
    }


@exporter("jetson")
def export(artifact: Artifact, out: Path) -> Path:
    """Write the bundle as `out/NAME-jetson.tar.gz`; two exports of one checkpoint are the same bytes."""
    top = f"{artifact.name}-jetson"
    return write_archive(jetson_files(artifact), out / f"{top}.tar.gz", top)
