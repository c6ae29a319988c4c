"""The ranks of one start find each other, whatever earlier starts left in the store that they share."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from pi_incubator import distributed
from pi_incubator.distributed import agree_on_name


def start(store, world_size=3):
    """The names that the ranks of one start agree on; each rank in a thread of its own."""
    with ThreadPoolExecutor(world_size) as ranks:
        return list(ranks.map(lambda rank: agree_on_name(store, rank, world_size), range(world_size)))


def test_every_start_has_a_name_of_its_own():
    store = dist.HashStore()
    names = [start(store) for _ in range(3)]
    assert all(len(set(of_one_start)) == 1 for of_one_start in names)
    assert len({of_one_start[0] for of_one_start in names}) == 3


def test_a_rank_that_died_while_it_joined_is_not_waited_for():
    """Its token stays in the store; the next start of that rank is the one that counts."""
    store = dist.HashStore()
    store.set("token/1", "of a process that is gone")
    assert len(set(start(store))) == 1


def test_a_missing_rank_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT_S", 0.05)
    with pytest.raises(TimeoutError, match=r"ranks \[1\] did not start"):
        agree_on_name(dist.HashStore(), 0, 2)


@pytest.mark.parametrize(
    ("gpus", "backend"), [("abc", "cpu:gloo,cuda:nccl"), ("aba", "gloo")], ids=["own", "shared"]
)
def test_ranks_that_share_a_gpu_do_without_nccl(monkeypatch, gpus, backend):
    store, rank_of = dist.HashStore(), threading.local()
    monkeypatch.setattr(distributed.torch.cuda, "current_device", lambda: 0)
    properties = lambda _: SimpleNamespace(uuid=gpus[rank_of.number])  # noqa: E731
    monkeypatch.setattr(distributed.torch.cuda, "get_device_properties", properties)

    def choose(rank):
        rank_of.number = rank
        return distributed._backend(store, rank, len(gpus))

    with ThreadPoolExecutor(len(gpus)) as ranks:
        assert set(ranks.map(choose, range(len(gpus)))) == {backend}


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[...]/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("[...]/pair.cc:553] Read error: Connection reset by peer"), True),
        (RuntimeError("NCCL error: invalid usage, Duplicate GPU detected"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_only_a_lost_connection_counts_as_another_rank_that_ended(error, lost):
    """What is wrong with this rank keeps its own message."""
    assert distributed.lost_another_rank(error, distributed.Distributed(0, 2)) == lost
    assert not distributed.lost_another_rank(error, distributed.Distributed())
