"""Runs tests in forks of a process that has already imported the libraries."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutation.candidate import Candidate

LIBRARIES = (
    "torch",
    "tensordict",
    "torchrl",
    "numpy",
    "mujoco",
    "onnx.reference",
    "onnxruntime",
    "pyarrow.parquet",
    "hypothesis",
    "psutil",
    "pydantic",
    "yaml",
    "mlflow",
)
QUIET = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
QUIET += ["-m", "not slow and not gpu"]
CONTEXT = "PI_MUTATION_CONTEXT"
"""The environment variable that tells a process which test started it."""
CONFTEST_FAILED = "while loading conftest"
"""What pytest says where a mutant keeps it from importing conftest.py."""
SURVIVED, KILLED, FAILED = range(3)
"""Exit codes of the process that tests a mutant; FAILED: it could not be tested."""
LONGER = 3.0
"""How many times the limit a mutant gets that was not done in time: the machine may have been busy."""
MAX_TESTS_S = 60.0
"""At most this long are the tests of one mutant, by the time they took unchanged."""


def warm_up() -> None:
    """Import what takes long, but nothing of ours: that is what changes.

    pytest looks for plugins in all that is installed, which takes a second each time: `QUIET` names some.
    """
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for library in LIBRARIES:
        importlib.import_module(library)
    # A collector that went through all of it would copy that memory into each fork: most of a fork's time.
    gc.collect()
    gc.freeze()


@dataclass
class Reached:
    """Which test runs which line."""

    lines: dict[str, dict[str, list[str]]]
    took_s: dict[str, float]

    def tests_of(self, candidate: Candidate) -> tuple[list[str], float]:
        """The tests that run a line, and their seconds; any of the file where that is not known.

        That is so for what runs at import, and for lines that only processes run which are then killed.
        """
        of_file = self.lines.get(candidate.file, {})
        tests = of_file.get(str(candidate.mutant.line), []) if candidate.is_in_function else []
        tests = tests or list({test for tests in of_file.values() for test in tests})
        chosen, total_s = [], 0.0
        for test in sorted(tests, key=lambda test: (self.took_s[test], test)):
            total_s += self.took_s[test]
            if chosen and total_s > MAX_TESTS_S:
                break
            chosen.append(test)
        return chosen, min(total_s, MAX_TESTS_S + self.took_s[chosen[0]]) if chosen else 0.0


def coverage_of(root: Path, build: Path, area: str, tests: list[str]) -> Reached:
    """Run the tests of an area once and note which lines each runs; kept until code or tests change."""
    shared = [
        *(root / "tests").glob("*.py"),
        root / "tests/mutation/__main__.py",
    ]  # helpers, the list of tests
    watched = [*(root / place for place in [area, *tests]), *shared]
    newest_s = max(file.stat().st_mtime for place in watched for file in _python_files(place))
    kept = build / f"coverage_{area.replace('/', '_')}.json"
    if not kept.exists() or kept.stat().st_mtime < newest_s:
        print(f"which tests run which lines of {area}", flush=True)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            child = os.fork()
            if child == 0:
                try:
                    _record(root, area, tests, kept, Path(folder))
                except BaseException:
                    traceback.print_exc()
                    _leave(1)
                _leave(0)
            if os.waitpid(child, 0)[1]:
                sys.exit(f"the tests of {area} could not be run")
    return Reached(**json.loads(kept.read_text()))


def _python_files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


class _Recorder:
    """A pytest plugin: a context of coverage for each test, its seconds, and whether it passes as it is."""

    def __init__(self, recorder: coverage.Coverage) -> None:
        self.took_s: dict[str, float] = {}
        self.failed: set[str] = set()
        self._recorder = recorder

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._recorder.switch_context(item.nodeid)
        os.environ[CONTEXT] = item.nodeid
        began_s = time.monotonic()
        yield
        self.took_s[item.nodeid] = time.monotonic() - began_s
        self._recorder.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def _record(root: Path, area: str, tests: list[str], out: Path, folder: Path) -> None:
    _enter(root)
    included = [f"{root}/{area}" if area.endswith(".py") else f"{root}/{area}/**"]
    recorder = coverage.Coverage(data_file=str(folder / "all"), include=included)
    plugin = _Recorder(recorder)
    _record_children(folder, included)
    recorder.start()
    code = pytest.main([*QUIET[1:], *tests], plugins=[plugin])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}: not all tests were run")
    recorder.stop()
    recorder.save()
    recorder.combine([str(folder)], keep=True)
    if plugin.failed:
        print(f"not used, for they fail without any mistake: {', '.join(sorted(plugin.failed))}", flush=True)
    data = recorder.get_data()
    lines = {
        str(Path(file).relative_to(root)): {
            str(line): [test for test in contexts if test in plugin.took_s and test not in plugin.failed]
            for line, contexts in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    assert lines, f"no test ran a line of {area}"
    part = out.with_suffix(".part")
    part.write_text(json.dumps({"lines": lines, "took_s": plugin.took_s}))
    part.replace(out)


def _record_children(folder: Path, included: list[str]) -> None:
    """Let the Python processes that tests start record what they run, as part of the test."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import atexit, coverage, os, uuid\n"
        f"name = {str(folder)!r} + '/all.' + uuid.uuid4().hex\n"
        f"recorder = coverage.Coverage(name, include={included!r}, context=os.environ.get({CONTEXT!r}))\n"
        "recorder.set_option('run:disable_warnings', ['no-data-collected'])\n"
        "recorder.start()\n"
        "atexit.register(lambda: (recorder.stop(), recorder.save()))\n"
    )
    os.environ["PYTHONPATH"] = f"{site}{os.pathsep}{os.environ['PYTHONPATH']}"


class _Killer:
    """A pytest plugin that writes the name of the test, or the file that cannot be imported, that noticed."""

    def __init__(self, file: Path) -> None:
        self.name = ""
        self._file = file
        file.write_text("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.name = report.nodeid
            self._file.write_text(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport


def _is_noticed(tests: list[str], killer: _Killer) -> bool:
    """Whether a test fails, and fails again: what fails once was disturbed by others on the machine.

    Raises:
        RuntimeError: pytest was called wrongly, found none of the tests, or failed itself.
    """
    while tests and _run_pytest(tests, killer):
        name = killer.name
        if not name or _run_pytest([name], killer):
            return True
        tests = [test for test in tests if test != name and not test.startswith(f"{name}::")]
    return False


def _run_pytest(tests: list[str], killer: _Killer) -> bool:
    """Whether tests fail or cannot be imported."""
    errors, killer.name = io.StringIO(), ""
    with contextlib.redirect_stderr(errors):
        code = pytest.main([*QUIET, *tests], plugins=[killer])
    sys.stderr.write(errors.getvalue())
    # pytest says USAGE_ERROR also where a file that it was given cannot be imported.
    is_by_mutant = killer.name or CONFTEST_FAILED in errors.getvalue()
    usual = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    if code not in usual and not is_by_mutant:
        raise RuntimeError(f"pytest ended with {code!r}, and no test failed")
    return code != pytest.ExitCode.OK


class Worker:
    """Tests one mutant at a time in its own copy of the tree."""

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        self._child = 0

    @property
    def busy(self) -> bool:
        """Whether a mutant is being tested."""
        return self._child != 0

    def start(self, candidate: Candidate, tests: list[str], expected_s: float) -> None:
        """Put the mutant into the copy and begin to test it."""
        self._candidate, self._tests = candidate, tests
        self._limit_s, self._is_repeated = 15.0 + 3.0 * expected_s, False
        self._file = self.copy / candidate.file
        self._original, self._times = self._file.read_bytes(), self._file.stat()
        self._file.write_text(candidate.mutant.source)
        self._fork()

    def _fork(self) -> None:
        self._began_s = time.monotonic()
        sys.stdout.flush()
        self._child = os.fork()
        if self._child == 0:
            try:
                os.setsid()
                silent = os.open(self.copy.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(silent, 1)
                os.dup2(silent, 2)
                _enter(self.copy)
                is_noticed = _is_noticed(self._tests, _Killer(self.copy.parent / "killer.txt"))
            except BaseException:
                traceback.print_exc()
                _leave(FAILED)
            _leave(KILLED if is_noticed else SURVIVED)

    def poll(self) -> dict[str, Any] | None:
        """The result, once the tests have ended; tests that are not done in time are given more once.

        Its `outcome` is survived, killed, timeout, or failed: it could not be tested, and `by` says why.
        """
        ended, status = os.waitpid(self._child, os.WNOHANG) if self._child else (0, 0)
        took_s = time.monotonic() - self._began_s if self._child else 0.0
        late = self._child and not ended and took_s > self._limit_s
        if late:
            os.killpg(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        if not ended and not late:
            return None
        subprocess.run(["pkill", "-KILL", "-s", str(self._child)], check=False)  # what its tests left behind
        self._child = 0
        if late and not self._is_repeated:
            self._limit_s, self._is_repeated = LONGER * self._limit_s, True
            self._fork()
            return None
        self._file.write_bytes(self._original)
        os.utime(self._file, ns=(self._times.st_atime_ns, self._times.st_mtime_ns))
        outcome = "timeout" if late else _outcome(status)
        file, source_line, label, nth = self._candidate.key
        place = {"file": file, "line": self._candidate.mutant.line, "source_line": source_line}
        ended = {"outcome": outcome, "by": self._reason(outcome), "took_s": round(took_s, 1)}
        return place | {"mutant": label, "nth": nth} | ended

    def _reason(self, outcome: str) -> str:
        """The test that noticed, or the last line of what could not be run."""
        if outcome == "killed" and (killer := self.copy.parent / "killer.txt").exists():
            return killer.read_text()
        lines = (self.copy.parent / "output.txt").read_text(errors="replace").splitlines()
        return lines[-1] if outcome == "failed" and lines else ""


def _outcome(status: int) -> str:
    """What a process that ended with this wait status found; a mutant may also end the process itself."""
    code = os.waitstatus_to_exitcode(status)
    return {SURVIVED: "survived", FAILED: "failed"}.get(code, "killed")


def _enter(root: Path) -> None:
    """Make `root` the tree that this process and its children run."""
    os.chdir(root)
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(root), PYTHONDONTWRITEBYTECODE="1")
    sys.path.insert(0, str(root))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    import pi_incubator

    assert Path(pi_incubator.__file__).is_relative_to(root), pi_incubator.__file__


def _leave(code: int) -> None:
    sys.stdout.flush()
    os._exit(code)
