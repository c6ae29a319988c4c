"""A config is checked against what is installed, without importing it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from envs_gpu.registry import Registry
from pi_incubator.config import ConfigError, ExperimentConfig, check, check_names, load_checked, validate_run

KINDS = {
    "env.name": ("task", "ant"),
    "env.backend": ("backend", "mjx"),
    "network.name": ("network", "mlp"),
    "algorithm.name": ("algorithm", "ppo"),
    "tracking.backend": ("tracker", "mlflow"),
}


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """One known name of each kind, so that the checks do not depend on what the packages hold."""
    for field, (kind, name) in KINDS.items():
        registry = Registry(kind, "a_package_that_does_not_exist")
        registry.register(name)(object)
        monkeypatch.setitem(check.REGISTRIES, field, registry)


def config(field: str, value: str) -> ExperimentConfig:
    section, key = field.split(".")
    return ExperimentConfig.model_validate({section: {key: value}})


@pytest.mark.parametrize("field", ["env.name", "tracking.backend"])  # others: test_config_unions.py
def test_unknown_names_suggest_the_nearest(field: str) -> None:
    kind, known = KINDS[field]
    with pytest.raises(ConfigError) as caught:
        check_names(config(field, known + "x"), {field: "a.yaml:3"})
    expected = f"a.yaml:3: {field} = '{known}x': unknown {kind}; did you mean '{known}'? known: {known}"
    assert str(caught.value) == expected


def test_settings_without_an_implementation_are_unknown() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.name = 'sac': unknown algorithm; known: ppo"):
        check_names(config("algorithm.name", "sac"), {})


def test_the_defaults_are_known() -> None:
    check_names(ExperimentConfig(), {})


def test_a_backend_without_its_file_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"env\.backend = 'warp': unknown backend; known: mjx"):
        check_names(config("env.backend", "warp"), {})


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_installed", lambda module: module == "jax")
    with pytest.raises(ConfigError) as caught:
        check_names(config("env.backend", "mjx"), {"env.backend": "command line"})
    expected = "command line: env.backend = 'mjx': needs mujoco.mjx, not installed here; "
    assert str(caught.value).startswith(expected + "pip install -e '.[mjx]'")


def test_mjx_on_warp_needs_warp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_installed", lambda module: "warp" not in module)
    cfg = ExperimentConfig.model_validate({"env": {"backend": "mjx", "mjx_impl": "warp"}})
    with pytest.raises(
        ConfigError, match=r"env\.mjx_impl = 'warp': needs warp and mujoco_warp, .*pip install -e \.,"
    ):
        check_names(cfg, {})


def test_submodules_are_found_without_importing_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parent_of_one").mkdir()
    (tmp_path / "parent_of_one" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "parent_of_one" / "child.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert check._installed("parent_of_one.child")
    assert not check._installed("parent_of_one.other")
    assert not check._installed("no_such_parent.child")
    assert "parent_of_one" not in sys.modules


def test_cuda_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"compute\.device = 'cuda': torch finds no CUDA device; set it to auto"
    ):
        check_names(config("compute.device", "cuda"), {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_names(config("compute.device", "cuda"), {})


@pytest.mark.parametrize("output_dir", ["file", "file/sub"])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_dir: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ConfigError) as caught:
        validate_run(config("experiment.output_dir", output_dir), {"experiment.output_dir": "a.yaml:2"})
    assert str(caught.value).startswith(f"a.yaml:2: experiment.output_dir = {output_dir!r}: cannot write to")


def test_load_checked_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"experiment: {{output_dir: {tmp_path / 'out'}}}")
    cfg, sources = load_checked(path)
    assert cfg.run_dir.is_dir()
    assert sources == {"experiment.output_dir": f"{path}:1"}
    path.write_text(f"experiment: {{output_dir: {path}}}")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: experiment.output_dir"):
        load_checked(path)
