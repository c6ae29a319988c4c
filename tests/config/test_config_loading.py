"""Files, inheritance and the command line become one config; saving it loses nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pi_incubator.config import ExperimentConfig, load_config, load_with_sources, save_config
from pi_incubator.config.models import ALGORITHMS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def of_dataset(path: Path) -> list[str]:
    """The override that a config needs whose algorithm, the name of its folder, reads recorded steps."""
    member = ALGORITHMS.members.get(path.parent.name)
    return ["dataset.path=recorded"] if member and member.reads_dataset else []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_shipped_configs_load_and_name_their_schema(path: Path) -> None:
    assert load_config(path, of_dataset(path)).num_iterations() >= 1
    up = "../" * (len(path.relative_to(ROOT / "configs").parts) - 1)
    assert path.read_text().startswith(f"# yaml-language-server: $schema={up}schema.json\n")


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001", "1E-3"])
def test_exponents_are_numbers(tmp_path: Path, number: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"algorithm:\n  lr: {number}\n")
    assert load_config(path).algorithm.lr == 1e-3
    assert load_config(path, [f"algorithm.gamma={number}"]).algorithm.gamma == 1e-3


def test_on_and_off_are_words(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("compute: {compile: on}")
    assert load_config(path).compute.compile == "on"
    assert load_config(path, ["compute.compile=off"]).compute.compile == "off"


def test_json_and_yaml_agree(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"$schema": "schema.json", "network": {"hidden_sizes": [32, 16]}}')
    (tmp_path / "a.yaml").write_text("network:\n  hidden_sizes: [32, 16]")
    assert load_config(tmp_path / "a.json") == load_config(tmp_path / "a.yaml")
    assert load_config(tmp_path / "a.json").network.hidden_sizes == (32, 16)


def test_an_empty_mapping_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{}")
    assert load_config(tmp_path / "a.yaml") == ExperimentConfig()


def test_inheritance_merges_fields_and_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.json").write_text('{"algorithm": {"lr": 0.1, "gamma": 0.5}, "env": {"name": "a"}}')
    (tmp_path / "sub" / "middle.yaml").write_text("base: ../base.json\nalgorithm: {lr: 0.2, num_epochs: 7}")
    top = tmp_path / "top.yaml"
    top.write_text("base: sub/middle.yaml\nalgorithm:\n  num_epochs: 9")
    cfg, sources = load_with_sources(top, ["env.name=b", "env.name=c"])
    assert (cfg.algorithm.lr, cfg.algorithm.gamma, cfg.algorithm.num_epochs) == (0.2, 0.5, 9)
    assert cfg.env.name == "c"
    assert sources == {
        "algorithm.lr": f"{tmp_path / 'sub' / 'middle.yaml'}:2",
        "algorithm.gamma": f"{tmp_path / 'sub' / '..' / 'base.json'}",
        "algorithm.num_epochs": f"{top}:3",
        "env.name": "command line",
    }


@pytest.mark.parametrize(
    ("settings", "has_cuda", "expected"),
    [
        ([], False, "cpu"),
        ([], True, "cuda"),
        (["compute.device=cuda"], False, "cuda"),
        (["compute.device=cpu"], True, "cpu"),
        (["env.backend=mujoco"], True, "cpu"),
    ],
)
def test_a_file_can_inherit_by_device(tmp_path: Path, monkeypatch, settings, has_cuda, expected) -> None:
    """On the command line, in the file, or in one that inherits from it; otherwise what torch finds."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    for device in ("cpu", "cuda"):
        (tmp_path / f"{device}.yaml").write_text(f"experiment: {{name: on_{device}}}")
    (tmp_path / "task.yaml").write_text("base: {cpu: cpu.yaml, cuda: cuda.yaml}\nenv: {name: hopper}")
    (tmp_path / "top.yaml").write_text("base: task.yaml\nenv: {num_envs: 8}")
    cfg = load_config(tmp_path / "top.yaml", settings)
    assert (cfg.experiment.name, cfg.env.name) == (f"on_{expected}", "hopper")
    for setting in settings:
        section, _, rest = setting.partition(".")
        (tmp_path / "own.yaml").write_text(f"base: task.yaml\n{section}: {{{rest.replace('=', ': ')}}}")
        assert load_config(tmp_path / "own.yaml").experiment.name == f"on_{expected}"


def test_override_values_are_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{}")
    overrides = ["network.hidden_sizes=[8, 4]", "tracking.uri=http://host?a=b", "evaluation.video = true"]
    cfg = load_config(tmp_path / "a.yaml", overrides)
    assert cfg.network.hidden_sizes == (8, 4)
    assert cfg.tracking.uri == "http://host?a=b"
    assert cfg.evaluation.video is True
    assert load_config(tmp_path / "a.yaml", ["tracking.uri=null"]).tracking.uri is None


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("env: {num_envs: 128}", encoding="utf-8-sig")
    assert load_config(tmp_path / "a.yaml").env.num_envs == 128


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment.name='123'", "experiment.output_dir='1e-3'", "tracking.uri='null'"],
        ["experiment.output_dir='true'", "tracking.uri='é: #x'", "env.name='2024-01-01'"],
        ["algorithm.lr=1e-300", "deployment.tolerance=1.2345678901234567e-5", "algorithm.entropy_coef=0"],
        ["network.hidden_sizes=[1, 2, 3]", "experiment.seed=4294967295", "compute.compile=off"],
    ],
)
def test_saved_configs_load_back_equal(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "a.yaml").write_text("{}")
    cfg = load_config(tmp_path / "a.yaml", overrides)
    save_config(cfg, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == cfg


def test_derived_sizes() -> None:
    cfg = ExperimentConfig.model_validate({"training": {"total_steps": 10_000}, "experiment": {"name": "x"}})
    assert (cfg.steps_per_iteration, cfg.num_iterations(), cfg.run_dir) == (4096, 2, Path("runs/x"))
    assert cfg.num_iterations(world_size=2) == 1


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ExperimentConfig().env.num_envs = 3


def test_importing_the_config_imports_nothing_heavy() -> None:
    heavy = ["torch", "jax", "mujoco", "warp", "numpy", "mlflow", "ray"]
    code = f"import sys, pi_incubator.config; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
