"""The experiment files travel in the wheel, and are found from any folder by their names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pi_incubator.cli import train
from pi_incubator.config import ConfigError, load_config
from pi_incubator.config.packaged import CONFIGS, packaged_configs

ROOT = Path(__file__).parents[1]
SOURCES = ("pi_incubator", "envs_gpu", "kernels", "bench", "configs")
FILES = ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in")
SHOW = """
import sys, pathlib, pi_incubator
assert pathlib.Path(pi_incubator.__file__).is_relative_to(sys.argv[1]), pi_incubator.__file__
from pi_incubator.config import load_config
for name in ("cartpole_balance.yaml", "configs/cartpole_balance.yaml", "configs/ppo/cartpole_balance.yaml"):
    print(load_config(name).experiment.name)
print(load_config("configs/sac/half_cheetah.yaml").experiment.name)
"""


def copy_of_sources(target: Path) -> Path:
    """The checkout without what is made in it."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in FILES:
        shutil.copy(ROOT / name, target / name)
    return target


def names_found_in(package: Path, empty: Path) -> list[str]:
    """The experiments that the package in `package` finds from the folder `empty`."""
    environment = os.environ | {"PYTHONPATH": str(package)}
    line = [sys.executable, "-c", SHOW, str(package)]
    done = subprocess.run(line, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


EXPECTED = [*["cartpole_balance_ppo"] * 3, "half_cheetah_sac"]


def test_a_built_package_holds_the_experiment_files(tmp_path: Path) -> None:
    """`setup.py build_py`, which every wheel is made by, copies them into the package."""
    source = copy_of_sources(tmp_path / "source")
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=120)
    (tmp_path / "empty").mkdir()
    assert names_found_in(tmp_path / "built", tmp_path / "empty") == EXPECTED
    assert (tmp_path / "built" / "pi_incubator" / "configs" / "schema.json").is_file()


@pytest.mark.slow
def test_a_wheel_holds_the_experiment_files(tmp_path: Path) -> None:
    """`pip wheel .`, unpacked somewhere else."""
    source = copy_of_sources(tmp_path / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    assert names_found_in(tmp_path / "installed", tmp_path / "empty") == EXPECTED


def test_a_checkout_finds_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an empty folder, by name or as `configs/...`; a file that is there comes first."""
    monkeypatch.chdir(tmp_path)
    assert CONFIGS == ROOT / "configs"
    assert load_config("cartpole_balance.yaml").experiment.name == "cartpole_balance_ppo"
    assert load_config("configs/sac/half_cheetah.yaml").experiment.name == "half_cheetah_sac"
    Path("cartpole_balance.yaml").write_text("experiment: {name: mine}")
    assert load_config("cartpole_balance.yaml").experiment.name == "mine"
    for name in ("nothing.yaml", "configs/../setup.py", "schema.json", str(tmp_path / "half_cheetah.yaml")):
        with pytest.raises(ConfigError):
            load_config(name)


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    """One row for each, with what it says about itself; no experiment is needed for it."""
    with pytest.raises(SystemExit) as ended:
        train.main(["--list-configs"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for name in packaged_configs():
        assert f" {name} " in printed
    assert "Keep the pole upright from a start near balance" in printed
    assert "schema.json" not in printed
