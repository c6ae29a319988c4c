#!/usr/bin/env python3
"""Build the TensorRT engine of this bundle on the machine that will run it: `python3 build_engine.py`.

An engine belongs to one GPU, one version of TensorRT and one ONNX file, so it is never shipped: this builds
it into `engines/`, under a name that tells all three, and does nothing where it is there already.

TensorRT 10 takes the precision as flags. TensorRT 11 types networks strongly and has no such flags: there the
precision is what the graph says, which the export has put into it (float16 weights, or Q/DQ nodes for int8).

It needs Python 3.10, the standard library and TensorRT; of the latter the command `trtexec`, or the Python
package (`--builder python`).
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRTEXEC = ("trtexec", "/usr/src/tensorrt/bin/trtexec")  # JetPack does not put it on the path
MAJORS = (10, 11)
FLAGS = {"fp32": ("--noTF32",), "fp16": ("--fp16",), "int8": ("--int8",)}
"""trtexec's of TensorRT 10, which may then run in float16 what the graph leaves in float32, too; int8 it runs
where the graph has Q/DQ nodes alone. Without `--noTF32` products of float32 keep ten bits of precision."""
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of cuda.h


class BuildError(Exception):
    """One clear line: what is wrong and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--builder", choices=("auto", "trtexec", "python"), default="auto")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    arguments = parser.parse_args(argv)
    try:
        print(build(HERE, arguments.builder, arguments.dry_run))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; copy the bundle again", file=sys.stderr)
        return 2
    except (ValueError, KeyError, TypeError) as error:
        print(f"error: {HERE}/contract.json: is damaged ({error!r}); copy the bundle again", file=sys.stderr)
        return 2
    return 0


def build(folder: Path, builder: str = "auto", dry_run: bool = False) -> str:
    """Build the engine of the bundle in `folder`, unless it is there; returns what was done, in a line."""
    contract = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
    onnx = folder / contract["onnx"]["file"]
    sha256 = hashlib.sha256(onnx.read_bytes()).hexdigest()
    if sha256 != contract["onnx"]["sha256"]:
        raise BuildError(f"{onnx}: its SHA-256 is not the contract's; copy the bundle again")
    gpu, capability = find_gpu()
    builder, version = find_builder(builder)
    if major(version) not in MAJORS:
        known = " and ".join(map(str, MAJORS))
        raise BuildError(f"TensorRT {version}: this script knows {known}; install one of them")
    engine = folder / "engines" / engine_name(gpu, capability, version, sha256)
    if engine.exists():
        return f"{engine}: is there already"
    partial = engine.with_suffix(".partial")
    command = trtexec_command(builder, version, contract, onnx, partial)
    if dry_run:
        by = "the Python package" if builder == "python" else " ".join(command)
        return f"{engine}: would be built by {by}"
    engine.parent.mkdir(exist_ok=True)
    if builder == "python":
        build_by_python(version, contract, onnx, partial)
    else:
        run(command)
    partial.rename(engine)
    return f"{engine}: built for {gpu} by TensorRT {version}"


def find_gpu() -> tuple[str, int]:
    """The name of the first GPU as its driver tells it, and its compute capability, 87 for 8.7."""
    nothing = "an engine is built on the machine that runs it, until then run the ONNX file"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise BuildError(f"no NVIDIA GPU here (no driver); {nothing}") from None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
    )
    if failed:
        raise BuildError(f"no NVIDIA GPU here (the driver gave error {failed}); {nothing}")
    return name.value.decode(), 10 * major.value + minor.value


def find_builder(wanted: str) -> tuple[str, str]:
    """What builds, `python` or the path of trtexec, and the version of TensorRT, such as 10.3.0."""
    package = python_version()
    trtexec = next((path for path in map(shutil.which, TRTEXEC) if path), None)
    if trtexec and wanted != "python":
        version = trtexec_version(trtexec)
        if package and not package.startswith(version):
            problem = f"{trtexec} is TensorRT {version} and the Python package {package}"
            raise BuildError(f"{problem}; use --builder python, whose engines the runtime can load")
        return trtexec, package or version
    if wanted == "trtexec":
        raise BuildError(f"no trtexec on the path or at {TRTEXEC[1]}; install it, or use --builder python")
    if package is None:
        raise BuildError("neither trtexec nor the Python package tensorrt is here; install TensorRT")
    return "python", package


def python_version() -> str | None:
    """The version of the Python package, which the runtime uses; None where it is not installed."""
    try:
        import tensorrt
    except ImportError:
        return None
    return str(tensorrt.__version__)


def trtexec_version(trtexec: str) -> str:
    told = subprocess.run([trtexec, "--help"], capture_output=True, text=True, check=False)
    match = re.search(r"TensorRT v(\d+)", told.stdout + told.stderr)
    if not match:
        raise BuildError(f"{trtexec}: does not tell its version; use --builder python")
    return version_of(match[1])


def version_of(number: str) -> str:
    """What trtexec calls v100300 as 10.3.0; TensorRT 8 wrote v8601."""
    if len(number) < 6:
        return ".".join((number[:-3], number[-3], str(int(number[-2:]))))
    return ".".join(str(int(part)) for part in (number[:-4], number[-4:-2], number[-2:]))


def major(version: str) -> int:
    """The 10 of 10.3.0."""
    return int(version.split(".")[0])


def engine_name(gpu: str, capability: int, version: str, sha256: str) -> str:
    """The file's name, by which the runtime finds it."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{sha256[:16]}-{slug}-sm{capability}-trt{version}.plan"


def inputs_of(contract: dict[str, Any]) -> list[tuple[str, int]]:
    """Name and width of every input of the graph, in its order."""
    states = [(f"{state['name']}_in", state["width"]) for state in contract["states"]]
    return [("observation", contract["observation"]["width"]), *states]


def trtexec_command(
    trtexec: str, version: str, contract: dict[str, Any], onnx: Path, engine: Path
) -> list[str]:
    """The command that builds for one robot: batch 1."""
    shapes = ",".join(f"{name}:1x{width}" for name, width in inputs_of(contract))
    flags = FLAGS[contract["precision"]] if major(version) < 11 else ()
    sizes = [f"--{bound}Shapes={shapes}" for bound in ("min", "opt", "max")]
    return [trtexec, f"--onnx={onnx}", f"--saveEngine={engine}", *sizes, *flags, "--skipInference"]


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-1:]
        raise BuildError(f"{command[0]} failed: {' '.join(last)}; run it by hand: {' '.join(command)}")


def build_by_python(version: str, contract: dict[str, Any], onnx: Path, engine: Path) -> None:
    """The same through the Python package."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx.read_bytes()):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BuildError(f"{onnx}: TensorRT cannot read it: {problems}")
    config = builder.create_builder_config()
    if major(version) < 11:
        for flag in FLAGS[contract["precision"]]:
            name = flag.strip("-")
            change = config.clear_flag if name.startswith("no") else config.set_flag
            change(getattr(trt.BuilderFlag, name.removeprefix("no").upper()))
    profile = builder.create_optimization_profile()
    for name, width in inputs_of(contract):
        profile.set_shape(name, (1, width), (1, width), (1, width))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{onnx}: TensorRT builds no engine of it; its log above says why")
    engine.write_bytes(bytes(plan))


if __name__ == "__main__":
    sys.exit(main())
