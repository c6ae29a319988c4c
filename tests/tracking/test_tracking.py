"""Trackers: what is recorded can be read back, also after the run was cut off and continued."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from envs_gpu.registry import UnknownNameError
from pi_incubator import faults
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.provenance import git_state
from pi_incubator.run_folder import RunFolder, begin
from pi_incubator.tracking import Tracker, make_tracker, read_metrics
from pi_incubator.tracking._base import Status
from pi_incubator.tracking._composite import CompositeTracker
from pi_incubator.tracking.mlflow import find_store, sqlite_uri

WITHOUT_MLFLOW = """
import sys
sys.modules["mlflow"] = None
from pi_incubator.config import ExperimentConfig
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking import make_tracker
cfg = ExperimentConfig()
try:
    make_tracker(cfg, RunFolder(cfg))
except Exception as error:
    print(type(error).__name__, error)
"""
TWO_AT_ONCE = """
import sys
from pi_incubator.config import ExperimentConfig
from pi_incubator.run_folder import RunFolder, begin
from pi_incubator.tracking import make_tracker
experiment = {"name": sys.argv[2], "output_dir": sys.argv[1]}
cfg = ExperimentConfig.model_validate({"experiment": experiment})
with RunFolder(cfg) as folder:
    begin(cfg, folder)
    with make_tracker(cfg, folder) as tracker:
        tracker.log(0, 1, {"x": 1.0})
"""


def make_config(output_dir: Path, backend: str = "none", **training: Any) -> ExperimentConfig:
    experiment = {"name": "run", "output_dir": str(output_dir)}
    return ExperimentConfig.model_validate(
        {"experiment": experiment, "tracking": {"backend": backend}, "training": training}
    )


def start(cfg: ExperimentConfig, start_iteration: int = 0) -> tuple[Tracker, RunFolder]:
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True, exist_ok=True)
    return make_tracker(cfg, folder, start_iteration), folder


def test_each_log_is_one_json_object(tmp_path: Path) -> None:
    tracker, folder = start(make_config(tmp_path))
    with tracker:
        tracker.log(0, 4096, {"episode/return": 1.5})
        tracker.log(9, 40960, {"episode/return": float("nan")})
        rows = read_metrics(folder.metrics)  # on disk at once, not only at the end
    assert [row["iteration"] for row in rows] == [0, 9]
    assert [row["env_steps"] for row in rows] == [4096, 40960]
    assert [row["episode/return"] for row in rows] == [1.5, None]
    assert 0 < rows[0]["wall_s"] <= rows[1]["wall_s"]
    assert all(json.loads(line) for line in folder.metrics.read_text().splitlines())


def test_spans_and_throughput_are_added(tmp_path: Path) -> None:
    tracker, folder = start(make_config(tmp_path))
    with tracker:
        for _ in range(3):
            with tracker.span("collect"):
                time.sleep(0.02)
        began_s = time.perf_counter()
        tracker.log(0, 1000, {})
        time.sleep(0.05)
        tracker.log(1, 3000, {})
        elapsed_s = time.perf_counter() - began_s
    first, second = read_metrics(folder.metrics)
    assert first["time/collect_s"] >= 0.06
    assert "time/collect_s" not in second
    assert 2000 / elapsed_s <= second["env_steps_per_s"] * 1.01
    assert second["env_steps_per_s"] <= 2000 / 0.05


def test_continued_run_drops_what_its_checkpoint_does_not_know(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    tracker, folder = start(cfg)
    for iteration in range(4):
        tracker.log(iteration, iteration + 1, {})
    with folder.metrics.open("a") as file:
        file.write('{"iteration": 4, "env_st')  # killed while writing
    kept_s = read_metrics(folder.metrics)[1]["wall_s"]
    tracker, folder = start(cfg, start_iteration=2)
    with tracker:
        tracker.log(2, 2 * cfg.steps_per_iteration + 10, {})
    rows = read_metrics(folder.metrics)
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert rows[2]["wall_s"] >= kept_s
    assert rows[2]["env_steps_per_s"] * (rows[2]["wall_s"] - kept_s) < 1000  # only the new steps count


def test_console_says_what_runs_and_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = make_config(tmp_path, total_steps=40960)
    tracker, folder = start(cfg, start_iteration=3)
    with tracker:
        tracker.log(4, 5 * 4096, {"episode/return": 123.4})
        tracker.log(5, 6 * 4096, {"episode/return": 200.0})
        tracker.log(9, 10 * 4096, {})
        print("evaluation")
    printed = capsys.readouterr().out
    assert "ppo + mlp on ant" in printed
    assert "training.total_steps=40960" in printed
    assert str(folder.path) in printed
    assert "continuing at iteration 3" in printed
    assert "iteration 5/10" in printed
    assert "return 123.4" in printed
    assert "iteration 6/10" not in printed  # too soon after the one before
    assert printed.index("iteration 10/10") < printed.index("evaluation")
    assert "finished" in printed


def test_none_records_nothing_elsewhere(tmp_path: Path) -> None:
    tracker, folder = start(make_config(tmp_path))
    with tracker:
        tracker.log(0, 1, {})
        tracker.log_artifact(folder.metrics)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in folder.path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "finished"), (ValueError, "failed"), (KeyboardInterrupt, "interrupted")]
)
def test_the_way_the_context_ends_is_the_status(error: type[BaseException] | None, status: str) -> None:
    ended = []

    class Recorder(Tracker):
        def close(self, status: Status = "finished") -> None:
            ended.append(status)

    with suppress(ValueError, KeyboardInterrupt), Recorder():
        if error:
            raise error
    assert ended == [status]


def test_null_object_accepts_everything(tmp_path: Path) -> None:
    with Tracker() as tracker, tracker.span("collect"):
        tracker.log(0, 0, {"x": 1.0})
        tracker.log_params({"x": 1})
        tracker.log_artifact(tmp_path)


def test_unknown_store_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'mlflow'"):
        start(make_config(tmp_path, backend="mlfow"))


def test_missing_package_is_one_line_with_the_fix() -> None:
    script = [sys.executable, "-c", WITHOUT_MLFLOW]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert printed.startswith("SettingError tracking.backend = 'mlflow': needs mlflow")
    assert "pip install mlflow" in printed
    assert printed.count("\n") == 1


def open_store(output_dir: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{output_dir / 'mlflow.db'}")


def runs_of(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("pi_incubator")
    return list(client.search_runs([experiment.experiment_id]))


def test_mlflow_holds_params_metrics_artifacts_and_commit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = make_config(tmp_path, backend="mlflow")
    with RunFolder(cfg) as folder:
        begin(cfg, folder)
        with make_tracker(cfg, folder) as tracker:
            for iteration in range(5):
                tracker.log(iteration, iteration * 4096, {f"m{i}": float(i) for i in range(300)})
            tracker.log_artifact(folder.config)
    assert capfd.readouterr().err == ""
    client = open_store(tmp_path)
    (run,) = runs_of(client)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["algorithm.lr"] == "0.0003"
    assert run.data.params["network.hidden_sizes"] == "[64, 64]"
    git = git_state()
    assert run.data.tags.get("mlflow.source.git.commit") == (git.commit if git else None)
    history = client.get_metric_history(run.info.run_id, "m299")
    assert [(metric.step, metric.value) for metric in history] == [(step, 299.0) for step in range(5)]
    assert run.data.metrics["env_steps"] == 4 * 4096
    assert "env_steps_per_s" in run.data.metrics
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
    assert list((tmp_path / "mlartifacts").rglob("config.yaml"))


def test_mlflow_run_is_continued(tmp_path: Path) -> None:
    tracker, _ = start(make_config(tmp_path, backend="mlflow"))
    tracker.log(0, 1, {"x": 1.0})
    tracker.close("interrupted")
    client = open_store(tmp_path)
    assert runs_of(client)[0].info.status == "KILLED"
    tracker, _ = start(make_config(tmp_path, backend="mlflow", total_steps=5_000_000), start_iteration=1)
    assert runs_of(client)[0].info.status == "RUNNING"
    with tracker:
        tracker.log(1, 2, {"x": 2.0})
    (run,) = runs_of(client)
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "x")] == [1.0, 2.0]
    assert run.data.params["training.total_steps"] == "3000000"
    assert run.data.tags["continued.training.total_steps"] == "5000000"


def test_mlflow_follows_a_moved_folder(tmp_path: Path) -> None:
    """Its artifacts lie beside its file wherever both were moved; the run has the folder's present name."""
    from mlflow.tracking._tracking_service import utils

    tracker, folder = start(make_config(tmp_path / "runs", backend="mlflow"))
    folder.config.write_text("before")
    with tracker:
        tracker.log_artifact(folder.config)
    (tmp_path / "runs").rename(tmp_path / "archive")
    (tmp_path / "archive" / "run").rename(tmp_path / "archive" / "gait")
    utils._artifact_repos_cache.clear()  # as in a new process
    experiment = {"name": "gait", "output_dir": str(tmp_path / "archive")}
    moved = ExperimentConfig.model_validate({"experiment": experiment})
    tracker, folder = start(moved, start_iteration=1)
    folder.curve.write_text("after")
    with tracker:
        tracker.log_artifact(folder.curve)
    client = open_store(tmp_path / "archive")
    (run,) = runs_of(client)
    assert run.info.run_name == "gait"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml", "curve.png"]
    assert not (tmp_path / "runs").exists()


def test_a_copied_folder_has_an_mlflow_run_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two runs that both go on do not mix their metrics."""
    tracker, folder = start(make_config(tmp_path, backend="mlflow"))
    tracker.close()
    shutil.copytree(folder.path, tmp_path / "copy")
    experiment = {"name": "copy", "output_dir": str(tmp_path)}
    tracker, copy = start(ExperimentConfig.model_validate({"experiment": experiment}), start_iteration=1)
    tracker.close()
    assert "the copy starts a new one" in caplog.text
    assert copy.mlflow_run_id.read_text() != folder.mlflow_run_id.read_text()
    assert sorted(run.info.run_name for run in runs_of(open_store(tmp_path))) == ["copy", "run"]


def test_metrics_stay_where_a_continued_run_logs_nothing(tmp_path: Path) -> None:
    """It failed before its first iteration: what was logged after the checkpoint is not dropped yet."""
    tracker, folder = start(make_config(tmp_path))
    for iteration in range(4):
        tracker.log(iteration, iteration + 1, {})
    before = folder.metrics.read_text()
    start(make_config(tmp_path), start_iteration=2)[0].close("failed")
    assert folder.metrics.read_text() == before


def test_training_survives_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pi_incubator.tracking import mlflow as store

    def away(*arguments: Any, **options: Any) -> None:
        raise MlflowException("the server is away")

    monkeypatch.setattr(store, "SECONDS_BETWEEN_REQUESTS", 0.0)
    tracker, folder = start(make_config(tmp_path, backend="mlflow"))
    with tracker:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", away)
            tracker.log(0, 1, {"x": 1.0})
        assert "the server is away" in caplog.text
        tracker.log(1, 2, {"x": 2.0})
    client = open_store(tmp_path)
    (run,) = runs_of(client)
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "x")] == [1.0, 2.0]
    assert len(read_metrics(folder.metrics)) == 2


@pytest.mark.parametrize(
    ("setting", "variable", "expected", "source"),
    [
        ("sqlite:///set.db", "sqlite:///environment.db", "set.db", "tracking.uri"),
        (None, "sqlite:///environment.db", "environment.db", "environment variable MLFLOW_TRACKING_URI"),
        (None, "", "{output_dir}/mlflow.db", "default"),
        (None, None, "{output_dir}/mlflow.db", "default"),
        ("https://me:secret@host/path", None, "https://host/path", "tracking.uri"),
    ],
)
def test_the_setting_wins_over_the_environment_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, variable: str, expected: str, source: str
) -> None:
    """And what is printed about it says who named the store, without a password."""
    if variable is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    cfg = make_config(tmp_path, backend="mlflow")
    cfg = cfg.model_copy(update={"tracking": cfg.tracking.model_copy(update={"uri": setting})})
    store = find_store(cfg, RunFolder(cfg))
    assert str(store) == f"{expected.format(output_dir=tmp_path)} ({source})"


def test_the_variable_names_the_store_and_the_console_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is in the store of the variable; nothing is made beside the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    tracker, folder = start(make_config(tmp_path / "runs", backend="mlflow"))
    with tracker:
        tracker.log_artifact(folder.mlflow_run_id)
    says = f"MLflow: {tmp_path}/elsewhere.db (environment variable MLFLOW_TRACKING_URI)"
    assert says in capsys.readouterr().out
    assert (tmp_path / "elsewhere.db").stat().st_size > 0
    assert list((tmp_path / "mlruns").rglob("mlflow_run_id"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_a_store_that_the_variable_names_wrongly_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable, not a setting that nobody wrote."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://bar")
    with pytest.raises(
        ConfigError, match=r"environment variable MLFLOW_TRACKING_URI = 'foo://bar': cannot be"
    ):
        start(make_config(tmp_path, backend="mlflow"))


def test_any_folder_holds_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters that mean something in an address, in SQL or in a shell are only characters of a path."""
    place = tmp_path / "a=b #c%20d?e&f 'g' \"h\": {i}[j] é $x \\n"
    place.mkdir()
    monkeypatch.chdir(place)
    tracker, folder = start(make_config(place, backend="mlflow"))
    with tracker:
        tracker.log(0, 1, {"x": 1.0})
        tracker.log_artifact(folder.mlflow_run_id)
    client = MlflowClient(tracking_uri=sqlite_uri(place / "mlflow.db"))
    (run,) = runs_of(client)
    assert run.data.metrics["x"] == 1.0
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["mlflow_run_id"]
    assert {path.name for path in place.iterdir()} == {"run", "mlflow.db", ".mlflow.db.lock", "mlartifacts"}
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


@pytest.mark.parametrize("uri", ["foo://bar", "sqlite:////proc/no/mlflow.db", "file:/tmp/mlruns"])
def test_store_that_cannot_be_opened_is_one_line(tmp_path: Path, uri: str) -> None:
    experiment = {"name": "run", "output_dir": str(tmp_path)}
    cfg = ExperimentConfig.model_validate({"experiment": experiment, "tracking": {"uri": uri}})
    with pytest.raises(ConfigError, match=r"tracking\.uri") as error:
        start(cfg)
    assert "\n" not in str(error.value)


def test_runs_that_start_together_share_a_new_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path)]
    processes = [subprocess.Popen([*command, name]) for name in ("first", "second")]
    assert [process.wait() for process in processes] == [0, 0]
    assert {run.info.run_name for run in runs_of(open_store(tmp_path))} == {"first", "second"}


def test_a_tracker_that_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """One warning until it works again; the others get everything."""
    logged, closed = [], []

    class Broken(Tracker):
        works = False

        def log(self, iteration: int, *rest: Any) -> None:
            if not self.works:
                raise OSError(28, "No space left on device for http://me:hidden@host")

        def close(self, status: Status = "finished") -> None:
            raise ValueError("two\nlines")

    class Sound(Tracker):
        def log(self, iteration: int, *rest: Any) -> None:
            logged.append(iteration)

        def close(self, status: Status = "finished") -> None:
            closed.append(status)

    broken = Broken()
    tracker = CompositeTracker([broken, Sound()])
    for iteration, broken.works in enumerate([False, False, True, False]):
        tracker.log(iteration, iteration, {})
    tracker.close("interrupted")
    assert logged == [0, 1, 2, 3]
    assert closed == ["interrupted"]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all("Broken failed (OSError: [Errno 28]" in text and "***" in text for text in warnings)


def test_a_metrics_file_that_cannot_be_written_costs_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = make_config(tmp_path)
    (tmp_path / "run" / "metrics.partial").mkdir(parents=True)
    tracker, _ = start(cfg)
    tracker.log(0, 1, {"x": 1.0})
    assert "metrics.partial" in caplog.text
    assert "the training goes on" in caplog.text


def test_a_store_without_room_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    from pi_incubator.tracking import mlflow as store

    def full(*arguments: Any, **options: Any) -> None:
        raise OperationalError("CREATE TABLE x", {}, Exception("database or disk is full"))

    monkeypatch.setattr(store, "MlflowClient", full)
    with pytest.raises(
        ConfigError, match=r"database or disk is full\); check the address and its disk"
    ) as error:
        start(make_config(tmp_path, backend="mlflow"))
    assert "CREATE TABLE" not in str(error.value)


def test_a_fault_on_purpose_is_a_failure_of_the_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(faults, "PLAN", faults.Plan("enospc@tracker:2"))
    tracker = CompositeTracker([Tracker()])
    for iteration in range(3):
        tracker.log(iteration, iteration, {})
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["Tracker failed"]
