"""What a launcher tells each rank, and what it makes of how they end."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pi_incubator.config import load_config
from pi_incubator.errors import UserError
from pi_incubator.launch.agent import Node
from pi_incubator.launch.plan import Plan, make_plan, versions

driver = pytest.importorskip("pi_incubator.launch.driver", reason="needs Ray")
NODE = Node("one", "10.0.0.1", 4001, True, (), versions())
NODES = [NODE, replace(NODE, free_port=4002), replace(NODE, name="two", address="10.0.0.2")]


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    overrides = ["compute.launcher=ray", "compute.num_workers=3", "compute.gpus_per_worker=0.5"]
    return make_plan(load_config("cartpole_balance.yaml", overrides), "cartpole_balance.yaml", overrides)


def test_a_plan_travels_as_text(plan):
    assert plan.num_workers == 3
    assert plan.address is None
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.command()[-3:] == list(plan.overrides)


def test_ranks_are_told_what_torchrun_would_tell_them():
    """The first is where all meet; local ranks count those of the same machine."""
    told = [driver._environment(rank, NODES) for rank in range(3)]
    assert {(env["MASTER_ADDR"], env["MASTER_PORT"], env["WORLD_SIZE"]) for env in told} == {
        ("10.0.0.1", "4001", "3")
    }
    assert [(env["RANK"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) for env in told] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
        ("2", "0", "1"),
    ]


def test_a_rank_that_sees_its_own_gpu_alone_takes_the_first():
    nodes = [replace(node, gpus=("3",)) for node in NODES]
    told = [driver._environment(rank, nodes) for rank in range(3)]
    assert {(env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) for env in told} == {("0", "1")}


@pytest.mark.parametrize(
    ("codes", "words", "expected"),
    [
        ([0, 0], ["", ""], 0),
        ([2, 2], ["error: no such file", driver.LOST_ANOTHER], 2),
        ([2, -9], [driver.LOST_ANOTHER, ""], driver.LOST),
        ([1, 2], ["Traceback", driver.LOST_ANOTHER], driver.LOST),
        ([143, 143], ["", ""], 128 + signal.SIGTERM),
    ],
    ids=["finished", "mistake of the user", "killed", "bug", "interrupted"],
)
def test_how_ranks_end_decides_what_follows(codes, words, expected):
    """A mistake is not tried again, a lost rank is; who only lost another one is not the cause."""
    ranks = SimpleNamespace(words=[[word] for word in words])
    assert driver._outcome(ranks, codes) == expected


def test_the_end_of_a_rank_is_explained(capsys):
    driver._outcome(SimpleNamespace(words=[[driver.LOST_ANOTHER], ["last words"]]), [2, -9])
    assert capsys.readouterr().err == "rank 1 was ended by SIGKILL\n  last words\n"


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (replace(NODE, has_directory=False), "node one has no folder"),
        (replace(NODE, versions=versions() | {"torch": "1.0"}), "node one has torch 1.0, this machine"),
    ],
)
def test_nodes_that_do_not_fit_are_named(plan, node, problem):
    with pytest.raises(UserError, match=problem) as caught:
        driver._check_nodes(plan, [NODE, node])
    assert len(str(caught.value).splitlines()) == 1
