"""Names and paths may hold every character that a file system allows, on the command line too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs_gpu.errors import ModelError
from envs_gpu.models import load_model
from pi_incubator.config import load_config, load_saved
from pi_incubator.run_folder import RunFolder, begin

ROOT = Path(__file__).parents[2]
NAME = " a=b #c%20d?e&f 'g' \"h\": {i}[j] é😀 $x_{$ \\n ~|<>*!:k: -"
NAMES = [
    *("a b", "a=b", "=", "#a", "a #b", "%", "%20", "%s", "'a", "'a'b", '"a', "a:b", "a: b", ":", "{}", "{a"),
    *("[a]", "[", "é", "😀", "-a", "--a=b", "-", "1e3", "1_0", "0x1", "null", "Null", "true", "~", "no"),
    *(".inf", "2001-01-01", "&a", "*a", "!a", "!!int 1", "|", ">", "@a", "`a`", "\\", "\\n", "a\nb", "a\tb"),
    *(" a", "a ", "?", "$HOME", "a;b", "\x7f", "\x1b[1m", "\x85", "\u2028", "\ufeff", "...", "a,b"),
    *("section.key=1", "n" * 255, "é" * 127),
]
PENDULUM = """<mujoco>
  <worldbody>
    <body pos="0 0 1"><joint name="hinge" axis="0 1 0"/><geom size="0.1" pos="0 0 -0.5"/></body>
  </worldbody>
  <actuator><position joint="hinge" kp="5" ctrlrange="-1 1"/></actuator>
</mujoco>
"""
SMALL = [
    *("env.num_envs=4", "algorithm.horizon=8", "algorithm.minibatch_size=32", "algorithm.num_epochs=1"),
    *(
        "training.total_steps=64",
        "compute.compile=off",
        "evaluation.num_episodes=1",
        "evaluation.video=false",
    ),
    *("deployment.num_check_observations=10", "compute.device=cpu"),
]


def command(module: str, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"pi_incubator.cli.{module}", *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_text_is_taken_as_it_stands(tmp_path: Path, name: str) -> None:
    """An override needs no quotes for YAML; null and ~ are null where a field may be null."""
    path = tmp_path / "a.yaml"
    path.write_text("algorithm: {name: distillation, teachers: [a]}")
    fields = ("experiment.name", "experiment.output_dir", "env.model", "algorithm.dataset")
    cfg = load_config(path, [f"{field}={name}" for field in fields])
    assert (cfg.experiment.name, cfg.experiment.output_dir) == (name, name)
    optional = None if name in ("null", "~") else name
    assert (cfg.env.model, cfg.algorithm.dataset) == (optional, optional)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_folder_of_any_name_holds_a_run(tmp_path: Path, name: str) -> None:
    """The folder has exactly this name, and the settings in it are read back equal."""
    path = tmp_path / "a.yaml"
    path.write_text("{}")
    cfg = load_config(path, [f"experiment.name={name}", f"experiment.output_dir={tmp_path}/runs"])
    with RunFolder(cfg) as folder:
        begin(cfg, folder)
    assert [found.name for found in (tmp_path / "runs").iterdir()] == [name]
    assert load_saved(folder.config)[0] == cfg


@pytest.mark.parametrize("text", ["'null'", '"null"'])
def test_quotes_make_a_name_of_null(tmp_path: Path, text: str) -> None:
    """A file that is called null is named in quotes."""
    path = tmp_path / "a.yaml"
    path.write_text("{}")
    assert load_config(path, [f"env.model={text}"]).env.model == "null"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the name, in a folder of the name, of a robot of the name."""
    place = tmp_path_factory.mktemp("names") / NAME
    place.mkdir()
    (place / f"{NAME}.yaml").write_text("env: {name: hold_pose}\n", encoding="utf-8")
    robot = f"{NAME}.xml".replace("\\", "")  # which MuJoCo takes for a slash
    (place / robot).write_text(PENDULUM)
    own = [f"experiment.name={NAME}", f"experiment.output_dir={place}/runs", f"env.model={robot}"]
    done = command("train", f"--config={NAME}.yaml", *own, *SMALL, cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "runs" / NAME


@pytest.mark.slow
def test_a_run_of_that_name_is_complete(run: Path) -> None:
    """Settings, checkpoints, curve and export are in its folder, and nothing is beside it."""
    cfg = load_saved(run / "config.yaml")[0]
    assert cfg.experiment.name == NAME
    for name in ("metrics.jsonl", "curve.png", "policy.onnx", "evaluation.json"):
        assert (run / name).stat().st_size > 0
    assert {path.name for path in run.parent.iterdir()} == {
        NAME,
        "mlflow.db",
        ".mlflow.db.lock",
        "mlartifacts",
    }


@pytest.mark.slow
def test_mlflow_holds_the_run(run: Path) -> None:
    """The store is the file beside the runs, and the artifacts are in the folder beside it."""
    from mlflow import MlflowClient

    from pi_incubator.tracking.mlflow import sqlite_uri

    client = MlflowClient(tracking_uri=sqlite_uri(run.parent / "mlflow.db"))
    experiment = client.get_experiment_by_name("pi_incubator")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == NAME
    assert {file.path for file in client.list_artifacts(found.info.run_id)} >= {"config.yaml", "curve.png"}
    assert list((run.parent / "mlartifacts").rglob("config.yaml"))


@pytest.mark.slow
def test_a_run_of_that_name_is_judged_and_exported(run: Path) -> None:
    """`pi-eval` and `pi-export` read the run, and write files of that name."""
    out = run.parents[1] / f"{NAME}.json"
    done = command("eval", f"./runs/{run.name}", "--episodes=1", f"--json={out}", cwd=run.parents[1])
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())
    done = command("export", str(run), f"--json={out}", "--episodes=1", cwd=run.parents[1])
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["path"] == str(run / "export" / "onnx")


@pytest.mark.slow
def test_a_run_of_that_name_teaches(run: Path) -> None:
    """`pi-distill` passes the teacher's name on to the settings."""
    student = ["training.total_steps=64", "algorithm.num_updates=2", "algorithm.minibatch_size=16"]
    brief = [
        *student,
        "tracking.backend=none",
        "evaluation.num_episodes=1",
        "deployment.export=none",
        "evaluation.curve=false",
    ]
    done = command("distill", "--teacher", str(run), "--student", "mlp", *brief, cwd=run.parents[1])
    assert done.returncode == 0, done.stderr
    assert load_saved(run.parent / f"{NAME}_student" / "config.yaml")[0].algorithm.teachers == (str(run),)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--config", "-a.yaml"], "a name that begins with '-' is written --option=NAME or ./NAME"),
        (["--config=-a.yaml"], "-a.yaml: file not found"),
        (["--config=" + "n" * 300 + ".yaml"], "File name too long"),
        (["--config=a.yaml", "experiment.name=a/b"], "holds '/'"),
        (["--config=a.yaml", "experiment.name=" + "n" * 256], "has 256 bytes"),
        (["--config=a.yaml", "experiment.output_dir=" + "n" * 256], "File name too long"),
        (["--config=a.yaml", "experiment.output_dir=/proc/x"], "cannot write to"),
        (["--config=a.yaml", "experiment.name=\udcff"], "not UTF-8"),
    ],
)
def test_what_cannot_be_a_name_is_one_line(tmp_path: Path, argv: list[str], says: str) -> None:
    """One line on stderr, exit code 2."""
    (tmp_path / "a.yaml").write_text("{}")
    done = command("train", *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_a_name_too_long_for_a_run_is_one_line(tmp_path: Path) -> None:
    """Also where a run or a file to write is named."""
    for argv in (["n" * 300], ["a", f"--json={'n' * 300}"]):
        done = command("eval", *argv, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_mesh_with_a_backslash_in_its_path_is_one_line(tmp_path: Path) -> None:
    """MuJoCo cannot open it; the model itself is given to it as text."""
    folder = tmp_path / "a\\b"
    folder.mkdir()
    path = folder / "c\\d.xml"
    path.write_text(PENDULUM)
    load_model(path)
    (folder / "m.obj").write_text("v 0 0 0\n")
    path.write_text(PENDULUM.replace("<worldbody>", '<asset><mesh file="m.obj"/></asset><worldbody>'))
    with pytest.raises(ModelError, match="takes its backslash for '/'; rename"):
        load_model(path)
