"""The runtime is a package by itself: vendored into a bundle, it needs numpy, onnxruntime and no more."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import bundles
import pytest

import pi_incubator.runtime

SOURCE = Path(pi_incubator.runtime.__file__).parent
LAZY = {"onnxruntime", "tensorrt", "pyarrow"}

# Run in an empty folder by `python -I`, which sees neither the current folder nor PYTHONPATH; what is not the
# runtime, numpy, onnxruntime or the standard library cannot be imported.
SCRIPT = """
import importlib.abc, json, sys

class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        root = name.partition(".")[0]
        if root not in {allowed} and root not in sys.stdlib_module_names:
            raise ImportError(f"{{name}} is not for a robot")

before = set(sys.modules)
sys.meta_path.insert(0, Guard())
sys.path.insert(0, {folder!r})
import pi_runtime
imported = {{name.partition(".")[0] for name in set(sys.modules) - before}}
policy = pi_runtime.Policy.load({bundle!r})
import numpy, pi_runtime.cli
target = policy.step(numpy.zeros(33, numpy.float32))
print(json.dumps([pi_runtime.__file__, target.tolist(), sorted(imported - sys.stdlib_module_names)]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundles.gru_bundle(tmp_path_factory.mktemp("standalone") / "bundle")


@pytest.fixture
def vendored(tmp_path):
    folder = tmp_path / "runtime"
    shutil.copytree(SOURCE, folder / "pi_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_vendored_under_another_name_it_runs_alone(bundle, vendored, tmp_path):
    # numpy and onnxruntime themselves look for what they can use beside them, and do without.
    allowed = {"pi_runtime", "numpy", "onnxruntime"}
    script = SCRIPT.format(allowed=allowed, folder=str(vendored), bundle=str(bundle))
    empty = tmp_path / "empty"
    empty.mkdir()
    result = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=empty, capture_output=True, text=True, check=True
    )
    file, target, imported = json.loads(result.stdout)
    assert file == str(vendored / "pi_runtime" / "__init__.py")
    assert imported == ["numpy", "pi_runtime"]
    policy = pi_incubator.runtime.Policy.load(bundle)
    assert target == pytest.approx(policy.step(policy.observation.copy() * 0).tolist(), abs=1e-6)


# Prints the files that onnxruntime has made in the home, and the threads that a policy has started.
QUIET = """
import os, sys
sys.path.insert(0, {folder!r})
import {package}
import numpy, onnxruntime
before = len(os.listdir("/proc/self/task"))
policy = {package}.Policy.load({bundle!r})
policy.step(numpy.zeros(33, numpy.float32))
files = [file for *_, names in os.walk({home!r}) for file in names]
print(files, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("package", ["pi_runtime", "pi_incubator.runtime"])
def test_onnxruntime_reports_nothing_to_its_makers(bundle, vendored, tmp_path, package):
    """It would keep its reports in the home, and send them by threads of its own some seconds later."""
    folder = vendored if package == "pi_runtime" else SOURCE.parents[1]
    home = tmp_path / "home"
    home.mkdir()
    script = QUIET.format(folder=str(folder), package=package, bundle=str(bundle), home=str(home))
    if package == "pi_runtime":  # a robot's program imports nothing of onnxruntime before the policy's
        script = script.replace("import numpy, onnxruntime", "import numpy")
    result = subprocess.run(
        [sys.executable, "-I", "-c", script],
        env={"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[] 0\n"


def test_vendored_command_line(bundle, vendored):
    result = subprocess.run(
        [sys.executable, "-m", "pi_runtime", "bench", str(bundle), "--steps", "100", "--seconds", "0.1"],
        cwd=vendored,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "step, 100 in a row" in result.stdout


def test_the_package_has_the_names_that_it_offers():
    """Those that docs/runtime.md imports are among them."""
    names = pi_incubator.runtime.__all__
    assert {"Flags", "Policy", "read_bundle"} <= set(names)
    assert all(hasattr(pi_incubator.runtime, name) for name in names)


def test_inside_the_project_nothing_heavy_is_imported():
    code = "import sys, pi_incubator.runtime; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in result.stdout.split()}
    assert not roots & {
        "torch",
        "onnx",
        "onnxruntime",
        "pydantic",
        "pyarrow",
        "mujoco",
        "envs_gpu",
        "kernels",
    }


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*.py")), ids=lambda path: path.name)
def test_source_imports_only_what_a_robot_has(path):
    """And is Python 3.10, JetPack 6's."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            root = name.partition(".")[0]
            allowed = {"numpy", *(LAZY if id(node) in lazy else ())}
            assert root in allowed or root in sys.stdlib_module_names, f"{path}:{node.lineno} imports {name}"


def test_nothing_is_ever_unpickled():
    for path in SOURCE.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text
        assert "allow_pickle=True" not in text
