"""What a launcher tells each rank, and what it makes of how they end."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pi_incubator.config import load_config
from pi_incubator.errors import UserError
from pi_incubator.launch.agent import Node, Report
from pi_incubator.launch.plan import Plan, make_plan, versions

driver = pytest.importorskip("pi_incubator.launch.driver", reason="needs Ray")
from pi_incubator.launch import cluster  # noqa: E402
from pi_incubator.launch.cluster import Room  # noqa: E402

NODE = Node("one", "10.0.0.1", 4001, True, True, (), versions())
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
    assert plan.command(goes_on=True)[-3:] == list(plan.overrides)


def test_only_the_first_attempt_begins_anew(plan):
    overrides = (*plan.overrides, "checkpoint.resume=never")
    anew = make_plan(load_config("cartpole_balance.yaml", overrides), "cartpole_balance.yaml", overrides)
    assert anew.command(goes_on=False)[-1] == "checkpoint.resume=never"
    assert anew.command(goes_on=True)[-1] == "checkpoint.resume=auto"


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
    ("codes", "words", "killed", "signum", "expected"),
    [
        ([0, 0], ["", ""], set(), None, 0),
        ([2, 2], ["error: no such file", driver.LOST_ANOTHER], set(), None, 2),
        ([2, -9], ["error: resume", ""], {1}, None, 2),
        ([2, -9], [driver.LOST_ANOTHER, ""], set(), None, driver.LOST),
        ([1, 2], ["Traceback", driver.LOST_ANOTHER], set(), None, driver.LOST),
        ([143, -15], ["", ""], set(), signal.SIGTERM, 128 + signal.SIGTERM),
    ],
    ids=["finished", "mistake", "mistake that one rank saw", "killed", "bug", "interrupted"],
)
def test_how_ranks_end_decides_what_follows(codes, words, killed, signum, expected):
    """A mistake is not tried again, a lost rank is; who only lost another one is not the cause."""
    ranks = SimpleNamespace(words=[[word] for word in words])
    assert driver._outcome(ranks, codes, killed, signum) == expected


def test_the_end_of_a_rank_is_explained(capsys):
    ranks = SimpleNamespace(words=[[driver.LOST_ANOTHER], ["last words"]])
    driver._outcome(ranks, [2, -9], set(), None)
    assert capsys.readouterr().err == "rank 1 was ended by SIGKILL\n  last words\n"


def test_ranks_that_wait_for_one_that_failed_are_ended(monkeypatch):
    """Rank 0 refuses to continue while the others wait for it to join."""
    stopped = []

    class Ranks:
        words = (["error: no checkpoint"], [""])

        def reports(self):
            return [Report(2, []), Report(-9 if stopped else None, [])]

        def stop(self):
            stopped.append(True)

    monkeypatch.setattr(driver, "GRACE_S", 0.0)
    assert driver._watch(Ranks(), SimpleNamespace(received=None)) == 2
    assert stopped


@pytest.mark.parametrize(
    ("nodes", "num_workers", "asked", "expected"),
    [
        ([(4, 0), (4, 0)], 2, (4, 0), (4, 0)),
        ([(1, 0), (1, 0)], 3, (1, 0), (0.5, 0)),
        ([(1, 0), (1, 0), (1, 0)], 4, (1, 0), (0.5, 0)),
        ([(4, 0), (4, 0)], 3, (4, 0), (2, 0)),
        ([(8, 2)], 3, (2, 1), (1.332, 0.666)),
    ],
)
def test_what_is_left_is_shared_so_that_all_ranks_fit(monkeypatch, plan, nodes, num_workers, asked, expected):
    """A rank needs its share on one node; a share of everything together may fit nowhere."""
    rooms = [Room(*node) for node in nodes]
    monkeypatch.setattr(cluster, "_nodes", lambda: rooms)
    found = cluster._share(replace(plan, num_workers=num_workers), Room(*asked))
    assert found == pytest.approx(Room(*expected), abs=2e-3)
    assert cluster._count(rooms, found) >= num_workers


def test_a_rank_that_fits_on_no_node_is_refused(monkeypatch, plan):
    """Even where all nodes together have enough."""
    monkeypatch.setattr(cluster, "_nodes", lambda: [Room(2, 1), Room(2, 1)])
    for num_workers, room in ((1, Room(3, 0)), (3, Room(0.5, 0.6))):
        with pytest.raises(UserError, match="has room for"):
            cluster._check_size(replace(plan, num_workers=num_workers), room)
    cluster._check_size(replace(plan, num_workers=4), Room(1, 0.5))


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (replace(NODE, has_directory=False), "node one has no folder"),
        (replace(NODE, has_python=False), "node one has no Python at"),
        (replace(NODE, versions=versions() | {"torch": "1.0"}), "node one has torch 1.0, this machine"),
    ],
)
def test_nodes_that_do_not_fit_are_named(plan, node, problem):
    with pytest.raises(UserError, match=problem) as caught:
        driver._check_nodes(plan, [NODE, node])
    assert len(str(caught.value).splitlines()) == 1
