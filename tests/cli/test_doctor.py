"""pi-doctor survives whatever its probes do, and reports the same in both forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pi_incubator.cli import doctor
from pi_incubator.cli._main import run
from pi_incubator.cli.doctor import Probe, attempt

WORKS = Probe("works", "os.system('echo noise; echo the last line')", "")
BROKEN = Probe("broken", "os; import no_such_package", "pip install 'pi_incubator[x]'")


@pytest.fixture
def _few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "probes", lambda: [WORKS, BROKEN])


def test_probe_that_works_reports_its_last_line() -> None:
    finding = attempt(WORKS)
    assert (finding.works, finding.detail, finding.fix) == (True, "the last line", "")


def test_probe_that_raises_reports_why_and_what_to_do() -> None:
    finding = attempt(BROKEN)
    assert not finding.works
    assert finding.detail == "ModuleNotFoundError: No module named 'no_such_package'"
    assert finding.fix == BROKEN.fix


def test_probe_that_crashes_is_survived() -> None:
    assert attempt(Probe("crash", "os.abort()", "")).detail == "crashed with SIGABRT"


def test_probe_that_hangs_with_a_child_is_survived() -> None:
    finding = attempt(Probe("hang", "os.system('sleep 20')", ""), timeout_s=1.0)
    assert not finding.works
    assert finding.wall_s < 10
    assert "1 s" in finding.detail


def test_probes_of_this_installation_run() -> None:
    physics = attempt(Probe("physics mujoco", "physics('mujoco')", ""))
    assert physics.works, physics.detail
    runtime = attempt(Probe("ONNX Runtime", "onnx_runtime()", ""))
    assert runtime.works, runtime.detail


@pytest.mark.usefixtures("_few_probes")
def test_table_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "doctor.json"
    with pytest.raises(SystemExit) as ended:
        run(doctor.main, ["--json", str(file)])
    assert ended.value.code in (None, 0)
    report = json.loads(file.read_text())
    assert report["packages"]["torch"]
    assert [finding["works"] for finding in report["findings"]] == [True, False]
    printed = capsys.readouterr().out
    assert "no_such_package" in printed
    assert "[x]" in printed  # not taken for markup
    assert report["packages"]["torch"] in printed


@pytest.mark.usefixtures("_few_probes")
def test_json_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(doctor.main, ["--json", str(tmp_path / "no" / "file.json")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("_few_probes")
@pytest.mark.parametrize(("version", "num_warnings"), [("0.4.0", 1), (None, 0)])
def test_namesake_of_our_kernels_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, version: str | None, num_warnings: int
) -> None:
    monkeypatch.setattr(doctor, "library_versions", lambda names: dict.fromkeys(names, version))
    assert len(doctor.examine().warnings) == num_warnings
