"""Faults on purpose happen where and when `PI_FAULT` says, and a mistake in it is one line."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pi_incubator import faults
from pi_incubator.errors import UserError
from pi_incubator.faults import Plan

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kill", "is not ACTION@SITE"),
        ("kill@save:0", "is not ACTION@SITE"),
        ("kill@nowhere", "there is no site 'nowhere'; the sites are: save, collect"),
        ("explode@save", "there is no action 'explode'; the actions are: kill, term"),
        ("kill@save:later", "save has no phase 'later'; the phases are: save:write"),
        ("kill@update:write", "update has no phase 'write'"),
        ("nan@save", "save takes no number; those that do are: grad"),
        ("raise@reset,kill@", "'kill@': is not ACTION@SITE"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_there_is(text, problem):
    with pytest.raises(UserError) as error:
        Plan(text)
    assert str(error.value).startswith("environment: PI_FAULT = ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_command_with_a_mistake_ends_before_it_begins():
    command = [sys.executable, "-m", "pi_incubator.cli.train", "--config", "nowhere.yaml"]
    ended = subprocess.run(command, cwd=ROOT, env={"PI_FAULT": "x"}, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: environment: PI_FAULT = 'x'")
    assert ended.stderr.count("\n") == 1


def test_a_fault_happens_once_at_its_number():
    plan = Plan("enospc@save:rename:2, raise@reset")
    plan.reach("save", "rename")
    plan.reach("save", "hash")
    plan.reach("save")
    with pytest.raises(OSError, match="PI_FAULT") as error:
        plan.reach("save", "rename")
    assert error.value.errno == errno.ENOSPC
    plan.reach("save", "rename")
    with pytest.raises(RuntimeError):
        plan.reach("reset")


def test_values_come_at_their_number_and_only_where_they_belong():
    plan = Plan("nan@env:2,inf@reward")
    assert [plan.value("env") for _ in range(3)] == [None, pytest.approx(torch.nan, nan_ok=True), None]
    assert [plan.value("reward") for _ in range(2)] == [torch.inf, None]


def test_a_fault_of_another_rank_does_not_happen():
    assert not Plan("raise@update/1", rank=0).names("update")
    assert Plan("raise@update/1", rank=1).names("update")


def test_without_the_variable_there_is_no_plan_and_no_wrapper(monkeypatch):
    monkeypatch.delenv("PI_FAULT", raising=False)
    faults.arm()
    assert faults.PLAN is None
    env = object()
    assert faults.spoiled_env(env) is env


def test_processes_that_torchrun_restarted_have_no_faults(monkeypatch):
    monkeypatch.setattr(faults, "PLAN", None)
    monkeypatch.setenv("PI_FAULT", "kill@update")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    faults.arm()
    assert faults.PLAN is None
