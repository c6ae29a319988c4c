"""The build script of a bundle, with a GPU, a trtexec and a TensorRT that only look like ones."""

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pi_incubator.deploy.exporters.tensorrt import TEMPLATES
from pi_incubator.registry import exporters
from pi_incubator.runtime._cuda import Gpu
from pi_incubator.runtime._tensorrt import engine_name

GPU = ("Orin (nvgpu)", 87)
SHAPES = "observation:1x33,last_action_in:1x12"
TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] [b1] # --help"; exit; fi
for argument; do case $argument in --saveEngine=*) printf plan > "${{argument#--saveEngine=}}";; esac; done
echo "$@" >> "{log}"
exit {code}
"""


@pytest.fixture
def bundle(walker, tmp_path):
    return exporters.get("tensorrt")(walker[1], tmp_path / "bundle")


@pytest.fixture
def script(bundle, monkeypatch):
    """The bundle's own copy as a module, on a machine with a GPU and without TensorRT."""
    spec = importlib.util.spec_from_file_location("build_engine", bundle / "build_engine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "find_gpu", lambda: GPU)
    monkeypatch.setattr(module, "TRTEXEC", ("trtexec-of-nobody", "/nowhere/trtexec"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    return module


@pytest.fixture
def trtexec(script, tmp_path, monkeypatch):
    """Installs a trtexec of a version; gives the command lines that it was called with."""

    def install(version, code=0):
        log, path = tmp_path / "calls", tmp_path / "trtexec"
        path.write_text(TRTEXEC.format(version=version, log=log, code=code))
        path.chmod(0o755)
        monkeypatch.setattr(script, "TRTEXEC", (str(path),))
        return lambda: log.read_text().splitlines() if log.exists() else []

    return install


def set_precision(bundle, precision):
    path = bundle / "contract.json"
    path.write_text(path.read_text().replace('"precision": "fp32"', f'"precision": "{precision}"'))


@pytest.mark.parametrize(
    ("version", "precision", "flags"),
    [
        ("100300", "fp32", ["--noTF32"]),
        ("100300", "fp16", ["--fp16"]),
        ("101600", "int8", ["--int8"]),
        ("110401", "fp16", []),
        ("110401", "int8", []),
    ],
)
def test_trtexec_is_told_precision_where_it_takes_flags(script, trtexec, bundle, version, precision, flags):
    set_precision(bundle, precision)
    calls = trtexec(version)
    said = script.build(bundle)
    (call,) = calls()
    assert call.split()[2:] == [
        *(f"--{bound}Shapes={SHAPES}" for bound in ("min", "opt", "max")),
        *flags,
        "--skipInference",
    ]
    assert call.startswith(f"--onnx={bundle}/policy.onnx --saveEngine={bundle}/engines/")
    assert "built for Orin (nvgpu)" in said


def test_the_engine_is_where_the_runtime_looks_for_it(script, trtexec, bundle, walker):
    trtexec("100300")
    script.build(bundle)
    expected = engine_name(Gpu(*GPU), "10.3.0", walker[1].contract["onnx"]["sha256"])
    assert [path.name for path in (bundle / "engines").iterdir()] == [expected]


def test_an_engine_is_built_once_for_each_gpu_and_version(script, trtexec, bundle, monkeypatch):
    calls = trtexec("100300")
    script.build(bundle)
    assert "is there already" in script.build(bundle)
    assert len(calls()) == 1
    trtexec("101600")
    script.build(bundle)
    monkeypatch.setattr(script, "find_gpu", lambda: ("NVIDIA Thor", 110))
    script.build(bundle)
    assert len(calls()) == 3
    assert len(list((bundle / "engines").glob("*.plan"))) == 3


def test_a_dry_run_builds_nothing(script, trtexec, bundle):
    calls = trtexec("100300")
    assert "--minShapes=observation:1x33" in script.build(bundle, dry_run=True)
    assert calls() == []
    assert not (bundle / "engines").exists()


class FakeTensorRT(types.ModuleType):
    """The few calls that the script makes, and what it made of them."""

    def __init__(self, version):
        super().__init__("tensorrt")
        self.__version__ = version
        self.flags, self.shapes = [], {}
        self.BuilderFlag = types.SimpleNamespace(FP16="FP16", INT8="INT8", TF32="TF32")
        self.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
        fake = self

        class Builder:
            def __init__(self, logger):
                pass

            def create_network(self, flags):
                return object()

            def create_builder_config(self):
                return types.SimpleNamespace(
                    set_flag=fake.flags.append,
                    clear_flag=lambda flag: fake.flags.append(f"no {flag}"),
                    add_optimization_profile=lambda profile: 0,
                )

            def create_optimization_profile(self):
                return types.SimpleNamespace(
                    set_shape=lambda name, *sizes: fake.shapes.__setitem__(name, sizes)
                )

            def build_serialized_network(self, network, config):
                return b"plan"

        self.Builder = Builder
        self.OnnxParser = lambda network, logger: types.SimpleNamespace(parse=lambda data: True)


@pytest.mark.parametrize(
    ("version", "precision", "flags"),
    [
        ("10.3.0", "fp32", ["no TF32"]),
        ("10.3.0", "int8", ["INT8"]),
        ("10.3.0", "fp16", ["FP16"]),
        ("11.4.1", "fp16", []),
    ],
)
def test_the_python_package_is_told_the_same(script, bundle, monkeypatch, version, precision, flags):
    set_precision(bundle, precision)
    fake = FakeTensorRT(version)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    script.build(bundle)
    assert fake.flags == flags
    assert fake.shapes == {"observation": ((1, 33),) * 3, "last_action_in": ((1, 12),) * 3}
    (engine,) = (bundle / "engines").iterdir()
    assert engine.read_bytes() == b"plan"
    assert engine.name.endswith(f"-orin-nvgpu-sm87-trt{version}.plan")


@pytest.mark.parametrize(
    ("number", "version"),
    [("100300", "10.3.0"), ("101602", "10.16.2"), ("110401", "11.4.1"), ("8601", "8.6.1")],
)
def test_trtexecs_number(script, number, version):
    assert script.version_of(number) == version


def test_what_cannot_be_built_with_is_told(script, trtexec, bundle, monkeypatch):
    with pytest.raises(script.BuildError, match="neither trtexec nor the Python package"):
        script.build(bundle)
    with pytest.raises(script.BuildError, match="no trtexec on the path"):
        script.build(bundle, "trtexec")
    trtexec("8601")
    with pytest.raises(script.BuildError, match=r"TensorRT 8\.6\.1: this script knows 10 and 11"):
        script.build(bundle)
    trtexec("100300", code=3)
    with pytest.raises(script.BuildError, match="trtexec failed"):
        script.build(bundle)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT("11.4.1"))
    with pytest.raises(script.BuildError, match=r"is TensorRT 10\.3\.0 and the Python package 11\.4\.1"):
        script.build(bundle)
    (bundle / "policy.onnx").write_bytes(b"another")
    with pytest.raises(script.BuildError, match="SHA-256 is not the contract's"):
        script.build(bundle)


def test_without_a_gpu_it_says_so_in_one_line(bundle):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("here is a GPU")
    command = [sys.executable, "-I", str(bundle / "build_engine.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no NVIDIA GPU here")
    assert done.stderr.count("\n") == 1
    assert not (bundle / "engines").exists()


def test_it_runs_on_the_python_of_jetpack_6():
    source = (TEMPLATES / "build_engine.py").read_text()
    command = ["-m", "ruff", "check", "--isolated", "--target-version", "py310", "--select", "UP,F", "-"]
    done = subprocess.run(
        [sys.executable, *command], input=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("damage", ["missing", "no JSON", "a field less"])
def test_a_damaged_contract_is_one_line(script, bundle, monkeypatch, capsys, damage):
    path = bundle / "contract.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("{" if damage == "no JSON" else "{}")
    monkeypatch.setattr(script, "HERE", bundle)
    assert script.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}")
    assert said.count("\n") == 1
