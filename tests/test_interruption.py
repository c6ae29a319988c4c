"""SIGTERM and SIGINT: the run is saved, the user learns how to continue, and the end is the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pi_incubator import faults, interruption
from pi_incubator.cli import _main
from pi_incubator.cli.train import main
from pi_incubator.interruption import Interrupted
from pi_incubator.run_folder import RunFolder
from tests.learning import assert_same_tensors, last_tensors

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "ppo" / "cartpole_balance.yaml"
SETTINGS = [
    *("env.num_envs=8", "algorithm.horizon=8", "algorithm.minibatch_size=32", "algorithm.num_epochs=1"),
    *("algorithm.lr_schedule=constant", "training.total_steps=256", "training.log_every=1"),
    *("checkpoint.save_every=3", "tracking.backend=none", "compute.compile=off", "compute.device=cpu"),
    *("evaluation.num_episodes=1", "evaluation.every=2", "evaluation.video=false"),
    *(
        "deployment.export=none",
        "evaluation.curve=false",
        "deployment.num_check_observations=20",
        "env.episode_length_s=0.5",
    ),
]
"""Four iterations: saved after the third and the last, judged after the second."""


def train(tmp_path, name, *settings):
    """Run the command in this process; returns its exit code and the run's folder."""
    place = [f"experiment.output_dir={tmp_path}", f"experiment.name={name}"]
    with pytest.raises(SystemExit) as ended:
        _main.run(main, ["--config", str(CONFIG), *SETTINGS, *place, *settings])
    return ended.value.code or 0, RunFolder(tmp_path / name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The tensors that a run ends with which no signal reached."""
    code, folder = train(tmp_path_factory.mktemp("whole"), "run")
    assert code == 0
    return last_tensors(folder)


@pytest.mark.parametrize(
    ("fault", "code", "iterations"),
    [
        ("int@collect:2", 130, [2]),
        ("term@save:rename", 143, [2, 3, 4]),  # the save is beside later iterations
        ("term@evaluation", 143, [2]),
        ("term@evaluation:2", 143, [4]),
        ("term@export", 143, [4]),
    ],
)
def test_a_signal_saves_says_how_to_continue_and_costs_no_bit(
    tmp_path, monkeypatch, capsys, uninterrupted, fault, code, iterations
):
    with monkeypatch.context() as patch:
        patch.setattr(faults, "PLAN", faults.Plan(fault))
        ended, folder = train(tmp_path, "run", *(["deployment.export=onnx"] if "export" in fault else []))
    assert ended == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    name = "SIGTERM" if code == 143 else "SIGINT"
    saved = int(folder.saved()[-1].name.removeprefix("iter_")) + 1
    assert saved in iterations
    assert last.startswith(f"stopped by {name}; saved after iteration {saved} of 4; continue with: ")
    assert train(tmp_path, "run")[0] == 0
    assert_same_tensors(uninterrupted, last_tensors(folder))


def test_the_handlers_are_those_of_before_afterwards(tmp_path):
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    train(tmp_path, "run", "training.total_steps=64")
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


def test_an_iteration_that_takes_too_long_is_given_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(interruption, "GRACE_S", 0.2)
    monkeypatch.setattr(faults, "PLAN", faults.Plan("term@collect:4,hang@update:4"))
    began_s = time.monotonic()
    code, folder = train(tmp_path, "run")
    assert code == 143
    assert time.monotonic() - began_s < 20
    assert "saved after iteration 3 of 4" in capsys.readouterr().err
    assert folder.saved()[-1].name == "iter_00000002"


def test_a_run_that_was_to_begin_anew_is_told_to_resume(tmp_path, monkeypatch, capsys):
    """The same command again would delete what was saved."""
    monkeypatch.setattr(faults, "PLAN", faults.Plan("term@update:2"))
    train(tmp_path, "run", "checkpoint.resume=never")
    assert capsys.readouterr().err.strip().endswith("checkpoint.resume=auto")


def test_mlflow_is_told_that_the_run_was_stopped(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.setattr(faults, "PLAN", faults.Plan("term@update:2"))
    train(tmp_path, "run", "tracking.backend=mlflow")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("KILLED",)]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["python", "train_ppo.py", "--config", "a b.yaml"],
            "python train_ppo.py --config 'a b.yaml' checkpoint.resume=auto",
        ),
        (
            ["/venv/bin/python", "/venv/bin/pi-train", "--config", "x"],
            "pi-train --config x checkpoint.resume=auto",
        ),
        (["python", "x", "tracking.uri=http://me:hidden@host"], "http://me:***@host"),
    ],
)
def test_the_command_is_the_one_that_was_typed(monkeypatch, capsys, argv, said):
    def stop(arguments):
        error = Interrupted(signal.SIGTERM)
        error.state, error.settings = "saved", ("checkpoint.resume=auto",)
        raise error

    monkeypatch.setattr(sys, "orig_argv", argv)
    with pytest.raises(SystemExit):
        _main.run(stop, [])
    assert said in capsys.readouterr().err


SECOND_SIGNAL = """
import os, signal, time
from pi_incubator import interruption
interruption.SAME_REQUEST_S = 0.2
with interruption.handled(), interruption.deferred():
    for pause_s in {pauses}:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(pause_s)
    print("not ended")
"""


@pytest.mark.parametrize(("pauses", "output"), [((0.3, 0.3), ""), ((0.0, 0.0), "not ended\n")])
def test_a_second_signal_ends_at_once_but_not_the_same_one_passed_on(pauses, output):
    script = [sys.executable, "-c", SECOND_SIGNAL.format(pauses=pauses)]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout == output
    assert ended.returncode != 0
    if not output:
        assert ended.returncode == 143
        assert ended.stderr.splitlines()[-1] == "second SIGTERM: ended at once"


def test_a_block_that_may_be_given_up_ends_and_the_program_goes_on():
    passed = []

    def program():
        with interruption.handled(), interruption.deferred():
            with interruption.given_up_on_signal():
                os.kill(os.getpid(), signal.SIGTERM)
                passed.append("not reached")
            passed.append("went on")

    with pytest.raises(Interrupted):
        program()
    assert passed == ["went on"]


ENDED_WITH_A_SEMAPHORE = """
import multiprocessing, os, signal, sys
from pi_incubator.cli import _main
def main(arguments):
    global kept
    kept = multiprocessing.get_context("spawn").RLock()  # as tqdm makes one while torch compiles
    os.kill(os.getpid(), signal.SIGTERM)
_main.run(main)
"""


def test_nothing_is_printed_after_the_line_that_says_how_to_go_on():
    """Python's own process that removes what a library has left behind is silent."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDED_WITH_A_SEMAPHORE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (143, "stopped by SIGTERM\n")
