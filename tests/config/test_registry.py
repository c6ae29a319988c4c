"""Registries list names without importing entries, and fail with the nearest name."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from envs_gpu.registry import Registry, UnknownNameError

ROOT = Path(__file__).parents[2]
PACKAGE = "things_for_registry_test"


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry over a package with one good entry, a helper, an excluded module and a broken entry."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    registry = f"THINGS = Registry('thing', '{PACKAGE}', exclude=('base',))\n"
    (folder / "__init__.py").write_text(f"from envs_gpu.registry import Registry\n\n{registry}")
    entry = f"from {PACKAGE} import THINGS\n\n@THINGS.register('good')\nclass Good: ...\n"
    (folder / "good.py").write_text(entry)
    for name in ("_helper", "base", "silent"):
        (folder / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for module in (PACKAGE, f"{PACKAGE}.good", f"{PACKAGE}.silent"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    things: Registry = importlib.import_module(PACKAGE).THINGS
    return things


def test_names_are_files_without_importing_them(things: Registry) -> None:
    assert things.names() == ["good", "silent"]
    assert f"{PACKAGE}.good" not in sys.modules


def test_get_imports_on_first_use(things: Registry) -> None:
    good = things.get("good")
    assert good.__name__ == "Good"
    assert things.get("good") is good


def test_run_time_entries(things: Registry) -> None:
    decorated = things.register("late")(print)
    assert decorated is print
    assert things.get("late") is print
    assert things.names() == ["good", "late", "silent"]


def test_a_duplicate_raises(things: Registry) -> None:
    things.register("late")(print)
    with pytest.raises(ValueError, match="thing 'late' is registered twice"):
        things.register("late")(print)


def test_an_entry_cannot_shadow_a_file(things: Registry) -> None:
    with pytest.raises(ValueError, match="thing 'good' is registered twice"):
        things.register("good")(print)


@pytest.mark.parametrize("name", ["goood", "GOOD"])
def test_a_missing_name_suggests_the_nearest(things: Registry, name: str) -> None:
    with pytest.raises(
        UnknownNameError, match=f"unknown thing '{name}'; did you mean 'good'\\? known: good, silent"
    ):
        things.get(name)


@pytest.mark.parametrize("name", ["_helper", "base", "zzz", "", "os.path"])
def test_helpers_are_no_entries(things: Registry, name: str) -> None:
    with pytest.raises(UnknownNameError, match="known: good, silent"):
        things.get(name)


def test_a_file_that_registers_nothing(things: Registry) -> None:
    with pytest.raises(ImportError, match="silent does not register the thing 'silent'"):
        things.get("silent")


def test_listing_our_registries_imports_nothing_heavy() -> None:
    code = """
import sys
from envs_gpu.tasks import TASKS
from pi_incubator.registry import algorithms, networks, trackers
names = [registry.names() for registry in (TASKS, algorithms, networks, trackers)]
assert "ant" in names[0] and "advantage" not in names[1]
print([m for m in ("torch", "jax", "mujoco", "warp", "numpy", "mlflow") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
