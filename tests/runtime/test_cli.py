"""`pi-runtime` as a user runs it: in a process of its own, against a robot in this one."""

import json
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing

import bundles
import numpy as np
import pyarrow.compute
import pyarrow.parquet
import pytest

from pi_incubator.runtime import Policy, PolicyRuntimeError
from pi_incubator.runtime.bench import random_observations
from pi_incubator.runtime.cli import _parse, cli, main
from pi_incubator.runtime.contract import read_contract
from pi_incubator.runtime.links import RobotLink
from pi_incubator.runtime.log import StepLog

COMMAND = [sys.executable, "-m", "pi_incubator.runtime"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundles.mlp_bundle(tmp_path_factory.mktemp("cli") / "bundle")


@pytest.fixture
def running(bundle):
    """Starts `pi-runtime run`; gives the process and the robot's end when it is ready."""
    processes = []

    def start(*options, path=bundle):
        url = f"shm:///test-{uuid.uuid4().hex}"
        process = subprocess.Popen(
            [*COMMAND, "run", str(path), "--link", url, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == f"ready: test_policy at {url}\n"
        return process, RobotLink(url, read_contract(path / "contract.json"))

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def report_of(process):
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 0, stderr
    return dict(line.split(None, 1) for line in stdout.splitlines())


def test_run_answers_like_the_policy_and_keeps_a_log(bundle, running, tmp_path):
    process, link = running("--follow", "--log", str(tmp_path / "log"))
    policy = Policy.load(bundle)
    observations = random_observations(policy.contract, 250)
    with closing(link) as robot:
        for observation in observations:
            robot.send(observation)
            np.testing.assert_array_equal(robot.receive(5.0), policy.step(observation))
    process.send_signal(signal.SIGTERM)
    report = report_of(process)
    assert report["accepted"] == "250"
    table = pyarrow.parquet.read_table(tmp_path / "log" / "000000.parquet")
    answered = table.filter(pyarrow.compute.equal(table["flags"], 0))
    np.testing.assert_array_equal(np.stack(answered["observation"].to_pylist()), observations)


def test_a_killed_run_keeps_its_log_but_for_the_last_second(running, tmp_path):
    """The first value of an observation counts them; the robot's clock tells which must be in the log."""
    process, link = running("--follow", "--max-misses", "100000", "--log", str(tmp_path / "log"))
    answered_at_s, ends_s = [], time.monotonic() + 2.0
    with closing(link) as robot:
        while time.monotonic() < ends_s:
            robot.send(np.full(bundles.WIDTH, len(answered_at_s) / 1024, np.float32))
            assert robot.receive(5.0) is not None
            answered_at_s.append(time.monotonic())
            time.sleep(0.005)
    killed_at_s = time.monotonic()
    process.kill()
    process.wait()
    main(["log", "to-parquet", str(tmp_path / "log")])
    rows = pyarrow.parquet.read_table(tmp_path / "log" / "steps.parquet")["observation"].to_pylist()
    kept = list(dict.fromkeys(int(1024 * row[0]) for row in rows))  # a late step has the one before again
    num_before = sum(at_s < killed_at_s - 1.0 for at_s in answered_at_s)
    assert num_before > 50
    assert kept[:num_before] == list(range(num_before))


DYING_WRITER = """
import sys
import pi_incubator.runtime.log as log
from pi_incubator.runtime.cli import cli

def die(*_):
    raise {error}("by a mistake")

log.FORMATS["npz"] = die
cli()
"""


@pytest.mark.parametrize("error", ["ValueError", "OSError"])
def test_a_log_that_could_not_be_written_is_an_error_at_the_end(bundle, tmp_path, error):
    """Counts are printed all the same, and the exit code is not that of a success."""
    url = f"shm:///test-{uuid.uuid4().hex}"
    options = ["--steps", "5", "--log", str(tmp_path / "log"), "--log-format", "npz"]
    process = subprocess.Popen(
        [sys.executable, "-c", DYING_WRITER.format(error=error), "run", str(bundle), "--link", url, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("ready: ")
    with closing(RobotLink(url, read_contract(bundle / "contract.json"))) as robot:
        robot.send(np.zeros(bundles.WIDTH, np.float32))
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    report = dict(line.split(None, 1) for line in stdout.splitlines())
    assert (report["steps"], report["log_dropped"]) == ("5", "5")
    assert len(stderr.splitlines()) == 1
    assert "by a mistake), 5 steps are lost; log to another disk" in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_on_a_signal_with_the_safe_target(running, number):
    process, link = running()
    with closing(link) as robot:
        robot.send(np.zeros(bundles.WIDTH, np.float32))
        assert robot.receive(5.0) is not None
        process.send_signal(number)
        report = report_of(process)
        last = None
        while (target := robot.receive(0.0)) is not None:
            last = target.copy()
    np.testing.assert_array_equal(last, np.full(12, 0.1, np.float32))
    assert int(report["steps"]) >= 1


def test_rate_limits_count_from_where_the_robot_is(running):
    """Half a unit a second at 50 Hz: the first targets are within 0.01 of what the robot held."""
    options = ("--follow", "--max-misses", "100000", "--max-rate", "0.5")
    process, link = running(*options, "--start-target", *["-0.7"] * 12)
    with closing(link) as robot:
        robot.send(np.zeros(bundles.WIDTH, np.float32))
        first = robot.receive(5.0).copy()
    np.testing.assert_allclose(first, -0.7, atol=0.0101)
    process.send_signal(signal.SIGTERM)
    assert int(report_of(process)["steps"]) >= 1


def test_the_watchdog_answers_a_robot_that_falls_silent(running):
    process, link = running("--max-misses", "2")
    with closing(link) as robot:
        robot.send(np.zeros(bundles.WIDTH, np.float32))
        deadline = time.monotonic() + 5
        target = robot.receive(5.0)
        while not np.array_equal(target, np.full(12, 0.1, np.float32)):
            assert time.monotonic() < deadline
            target = robot.receive(1.0)
    process.send_signal(signal.SIGTERM)
    assert int(report_of(process)["stopped"]) >= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["0.1"] * 11, "11 numbers, not 12; give one for each joint"),
        (["nan"] * 12, "nan is not from -0.8 to 0.8"),
        (["-1e-05"] * 11 + ["30"], "30 is not from -0.8 to 0.8; give it in the contract's unit"),
        (["-1e300"] * 12, "-1e+300 is not from"),
        (["0.1"] * 12, "nothing limits how fast targets change, so it would have no effect; give --max-rate"),
    ],
)
def test_a_start_target_that_does_not_fit(values, message, bundle):
    with pytest.raises(PolicyRuntimeError) as caught:
        main(["run", str(bundle), "--link", "udp://127.0.0.1:9", "--start-target", *values])
    assert message in str(caught.value)


def test_a_start_target_may_lie_on_the_limits(bundle):
    """-0.8 and 0.8: what comes next, the link, is what is refused here."""
    values = [*["-0.8"] * 6, *["0.8"] * 6]
    with pytest.raises(PolicyRuntimeError, match="give udp://HOST:PORT"):
        main(["run", str(bundle), "--link", "x", "--max-rate", "1", "--start-target", *values])


@pytest.mark.parametrize(
    ("value", "fits"), [("3e38", True), ("-3e38", True), ("3.5e38", False), ("-3.5e38", False)]
)
def test_a_start_target_of_a_joint_without_limits_is_one_that_float32_can_hold(tmp_path, value, fits):
    model = bundles.mlp_onnx()
    contract = bundles.contract_dict(states=[("last_action", 12)], onnx_bytes=model.SerializeToString())
    contract["joints"][3] |= {"target_low": None, "target_high": None}
    path = bundles.write_bundle(tmp_path / "b", model, contract)
    values = [*["0.1"] * 3, value, *["0.1"] * 8]
    problem = "give udp://HOST:PORT" if fits else r"joint_3: .* is not from -3.40282e\+38 to 3.40282e\+38"
    with pytest.raises(PolicyRuntimeError, match=problem):
        main(["run", str(path), "--link", "x", "--max-rate", "1", "--start-target", *values])


def test_bench(bundle, tmp_path, capsys):
    main(["bench", str(bundle), "--steps", "300", "--seconds", "0.2", "--json", str(tmp_path / "x.json")])
    result = json.loads((tmp_path / "x.json").read_text())
    assert (result["num_steps"], result["num_paced_steps"], result["num_flagged"]) == (300, 10, 0)
    for name in ("step_us", "paced_us", "wake_us"):
        assert result[name] == sorted(result[name])
    assert 1 < result["step_us"][0] < 1000
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "test_policy on onnxruntime, batch 1, control rate 50 Hz"
    assert out[1].split() == ["p50", "p99", "p99.9", "max", "µs"]
    for line, name in zip(out[2:5], ("step_us", "paced_us", "wake_us"), strict=True):
        assert line.split()[-4:] == [f"{time_us:.1f}" for time_us in result[name]]
    assert out[2].startswith("step, 300 in a row  ")
    assert out[3].startswith("step, 10 at the rate  ")
    assert out[5:] == [f"deadline misses: {result['deadline_misses']} of 10"]


def rows_of_check(path, capsys):
    main(["check", str(path)])
    return dict(re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_check(bundle, capsys):
    assert rows_of_check(bundle, capsys) == {
        "policy": "test_policy (mlp, fp32), task test",
        "control rate": "50 Hz",
        "observation": "33 values: sensors 30, command 3",
        "commands": "forward_m_s, sideways_m_s, turn_rad_s",
        "joints": ", ".join(f"joint_{i}" for i in range(12)),
        "states": "last_action 12",
        "runs on": "onnxruntime",
        "gates": "not run",
    }


def test_check_says_what_became_of_the_gates(tmp_path, capsys):
    """And that a policy has no commands and no states, where it has none."""
    graph = bundles.Graph()
    graph.add("Slice", "observation", *(graph.constant([i], np.int64) for i in (0, 12, 1)), out="target")
    model = graph.model(bundles.WIDTH, 12, [], 18)
    contract = bundles.contract_dict(onnx_bytes=model.SerializeToString())
    contract |= {"commands": [], "gates": {"parity": {}, "latency": {}}}
    path = bundles.write_bundle(tmp_path / "b", model, contract)
    rows = rows_of_check(path, capsys)
    assert (rows["commands"], rows["states"], rows["gates"]) == ("none", "none", "passed latency, parity")
    (path / "FAILED_GATES").write_text("latency\n")
    assert rows_of_check(path, capsys)["gates"] == "FAILED"


def test_bench_says_where_steps_were_not_normal(bundle, capsys):
    """A rate limit of almost nothing holds every target back."""
    main(["bench", str(bundle), "--steps", "20", "--seconds", "0.02", "--max-rate", "1e-6"])
    assert "flagged steps: 20 of 20, whose times are not those of a normal step" in capsys.readouterr().out


def test_bench_cannot_write_its_numbers(bundle, tmp_path):
    options = ["--steps", "1", "--seconds", "0.02", "--json", str(tmp_path / "none" / "x.json")]
    with pytest.raises(PolicyRuntimeError, match=r"none/x.json: cannot be written \(No such file"):
        main(["bench", str(bundle), *options])


DEFAULTS = {
    "bench": ({"steps": 20_000, "seconds": 5.0}, ["BUNDLE"]),
    "run": ({"max_misses": 3}, ["BUNDLE", "--link", "URL"]),
}


@pytest.mark.parametrize("command", DEFAULTS)
def test_defaults_are_those_that_the_help_names(command, capsys):
    expected, arguments = DEFAULTS[command]
    parsed = vars(_parse([command, *arguments]))
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in expected.items():
        assert parsed[name] == value
        assert re.search(rf"--{name.replace('_', '-')} [^-]*default: {value:.0f}\b", text)


@pytest.mark.parametrize("command", [[], ["log"], ["run", "BUNDLE"], ["log", "to-parquet"], ["check"]])
def test_what_a_command_needs_is_asked_for(command):
    with pytest.raises(PolicyRuntimeError, match=r"the following arguments are required: .*; see pi-runtime"):
        _parse(command)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("2147483647", 2**31 - 1), ("0", None), ("2147483648", None), ("1.0", None)]
)
def test_whole_numbers_on_the_command_line(text, value):
    arguments = ["bench", "BUNDLE", f"--steps={text}"]
    if value:
        assert _parse(arguments).steps == value
    else:
        with pytest.raises(PolicyRuntimeError, match=f"'{text}' is not a whole number of at least 1; see"):
            _parse(arguments)


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "fast", "0.5", "1e-300"])
def test_numbers_on_the_command_line(text):
    arguments = ["bench", "BUNDLE", f"--seconds={text}"]
    if text in ("0.5", "1e-300"):
        assert _parse(arguments).seconds == float(text)
    else:
        with pytest.raises(PolicyRuntimeError, match=f"'{text}' is not a number above 0; see"):
            _parse(arguments)


def test_a_command_that_is_interrupted_says_so(monkeypatch, capsys, bundle):
    """With the exit code that a shell gives to SIGINT."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pi_incubator.runtime.cli.bench", interrupt)
    monkeypatch.setattr(sys, "argv", ["pi-runtime", "bench", str(bundle)])
    with pytest.raises(SystemExit) as caught:
        cli()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_log_is_converted(bundle, tmp_path, capsys):
    """To the file that is named, or beside the chunks."""
    log = StepLog(tmp_path / "log", read_contract(bundle / "contract.json"), format="npz")
    for i in range(7):
        log.add(np.zeros(bundles.WIDTH, np.float32), np.zeros(12, np.float32), i)
    log.close()
    out = tmp_path / "x.parquet"
    for options, path in ((["--out", str(out)], out), ([], tmp_path / "log" / "steps.parquet")):
        main(["log", "to-parquet", str(tmp_path / "log"), *options])
        assert capsys.readouterr().out == f"{path}: 7 steps\n"
        assert pyarrow.parquet.read_table(path)["flags"].to_pylist() == list(range(7))


def test_a_run_ends_after_its_steps_with_a_row_for_each_count(running):
    process, link = running("--steps", "3")
    with closing(link) as robot:
        robot.send(np.zeros(bundles.WIDTH, np.float32))
        report = report_of(process)
    names = ["steps", "late", "missing", "stopped", "flagged", "accepted", "stale", "wrong_size", "malformed"]
    assert list(report) == [*names, "log_dropped"]
    assert (report["steps"], report["accepted"], report["log_dropped"]) == ("3", "1", "0")


def test_the_projects_own_entry_is_the_same(bundle):
    command = [sys.executable, "-m", "pi_incubator.cli.runtime", "check", str(bundle)]
    assert "runs on       onnxruntime" in subprocess.run(command, capture_output=True, text=True).stdout


def test_what_failed_its_gates_does_not_run(running, tmp_path):
    path = bundles.mlp_bundle(tmp_path / "failed")
    (path / "FAILED_GATES").write_text("latency\n")
    with pytest.raises(PolicyRuntimeError, match="failed its gates and is not for a robot"):
        main(["run", str(path), "--link", "udp://127.0.0.1:9"])
    running("--allow-failed-gates", path=path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bench"], "error: the following arguments are required: BUNDLE; see pi-runtime bench --help"),
        (["bench", "none"], "error: none: cannot be read (No such file or directory)"),
        (["fly"], "invalid choice: 'fly'"),
        (["bench", "x", "--steps", "0"], "'0' is not a whole number of at least 1"),
        (["run", "x", "--link", "y", "--max-rate", "nan"], "'nan' is not a number above 0"),
        (["log", "to-parquet", "none"], "error: none: holds no chunk of a log"),
    ],
)
def test_a_mistake_is_one_line(argv, message):
    result = subprocess.run([*COMMAND, *argv], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
