"""An agent starts a rank, tells how it is, and takes it along when it ends."""

import os
import signal
import subprocess
import sys
import time

import psutil

from pi_incubator.launch.agent import Agent

SLEEPS = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"]


def wait_for(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_it_tells_what_its_rank_printed_and_how_it_ended(tmp_path):
    agent = Agent()
    program = "import os, sys; print(os.environ['RANK'], os.getcwd()); sys.exit(3)"
    agent.start([sys.executable, "-c", program], {"RANK": "7"}, str(tmp_path))
    reports = []
    wait_for(lambda: reports.append(agent.report()) or reports[-1].exit_code is not None)
    assert [line for report in reports for line in report.lines] == [f"7 {tmp_path}"]
    assert reports[-1].exit_code == 3


def test_a_signal_reaches_its_rank():
    agent = Agent()
    agent.start(SLEEPS, {}, os.getcwd())
    agent.send(signal.SIGTERM)
    wait_for(lambda: agent.report().exit_code == -signal.SIGTERM)
    agent.send(signal.SIGTERM)  # nobody is there, and nothing happens


def test_a_rank_does_not_outlive_its_agent():
    """Also one that was killed: a new rank may already use the same run folder."""
    program = (
        "import os, time; from pi_incubator.launch.agent import Agent; agent = Agent(); "
        f"print(agent.start({SLEEPS!r}, {{}}, os.getcwd()), flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    rank = psutil.Process(int(parent.stdout.readline()))
    assert rank.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE)


def test_a_node_says_what_it_is(tmp_path):
    node = Agent().look(str(tmp_path), sys.executable, "10.0.0.1")
    assert (node.address, node.has_directory, node.has_python, node.gpus) == ("10.0.0.1", True, True, ())
    assert {"python", "pi_incubator", "torch", "ray"} <= node.versions.keys()
    assert 0 < node.free_port < 65_536
    other = Agent().look(str(tmp_path / "nowhere"), str(tmp_path / "python"), "10.0.0.1")
    assert (other.has_directory, other.has_python) == (False, False)
