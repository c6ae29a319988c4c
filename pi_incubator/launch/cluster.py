"""The Ray cluster that a training runs on: connected to, or started on this machine, and asked for room."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import AuthenticationError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from pi_incubator.errors import UserError
from pi_incubator.launch.plan import Plan

HEAD_WAIT_S = 60.0
"""How long a training that goes on waits for the head of its cluster."""
NODE_WAIT_S = 20.0
"""How long it waits for as much room as before, until it goes on with less."""
POLL_S = 0.5
ANSWER_S = 5.0
FIX = "start one with `ray start --head`; without compute.cluster and RAY_ADDRESS, one is started here"


class Room(NamedTuple):
    """What each rank gets."""

    cpus: float
    gpus: float


@contextlib.contextmanager
def connected(plan: Plan, goes_on: bool) -> Iterator[None]:
    """Connect to the cluster; one that was started here ends with the block.

    Args:
        plan: names the cluster.
        goes_on: whether the training has run before, so that the head may be starting again.

    Raises:
        UserError: there is no such cluster, or it does not let us in.
    """
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if plan.address is None:
        options |= {"include_dashboard": False, "num_cpus": len(os.sched_getaffinity(0))}
    else:
        _wait_for_head(plan.address, HEAD_WAIT_S if goes_on else 0.0)
    address = plan.address or "local"
    try:
        ray.init(address, **options)
    except AuthenticationError as error:
        fix = "set RAY_AUTH_TOKEN to the cluster's token"
        raise UserError(
            f"the Ray cluster at {address} refuses this program; {fix} ({_short(error)})"
        ) from None
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster can be used at {address}; {FIX} ({_short(error)})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _wait_for_head(address: str, patience_s: float) -> None:
    """Wait until something listens at `HOST:PORT`; Ray would ask for minutes where nothing ever does.

    Raises:
        UserError: nothing does after `patience_s`.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        source = "compute.cluster (or RAY_ADDRESS)"
        raise UserError(f"{source} = {address}: is not HOST:PORT; write it as 10.0.0.1:6379, for example")
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline_s:
                raise UserError(f"no Ray cluster answers at {address}; {FIX} ({_short(error)})") from None
            time.sleep(POLL_S)


@contextlib.contextmanager
def reserved(plan: Plan, goes_on: bool, tell: Callable[[str], None]) -> Iterator[tuple[PlacementGroup, Room]]:
    """Reserve room for all ranks, on as few nodes as have it.

    The number of ranks never changes, because results depend on it. A training that goes on after it has
    lost a node waits for another one for a while, and then each rank gets less, so that all fit.

    Args:
        plan: what each rank asks for.
        goes_on: whether the training has run before.
        tell: prints a line.

    Raises:
        UserError: the cluster is too small for a training that begins.
    """
    asked = room = _asked(plan)
    if not goes_on:
        _check_size(plan, asked)
    group = _reserve(plan, room)
    while not group.wait(NODE_WAIT_S):
        share = _share(plan, asked) if goes_on else asked
        if share == room:
            tell("waiting for room in the cluster")
            continue
        room = share
        tell(f"the cluster is smaller now: each rank gets {room.cpus:g} CPUs and {room.gpus:g} GPUs")
        remove_placement_group(group)
        group = _reserve(plan, room)
    try:
        yield group, room
    finally:
        with contextlib.suppress(RayError, ConnectionError):
            remove_placement_group(group)


def _asked(plan: Plan) -> Room:
    gpus = plan.gpus_per_worker
    if gpus is None:
        enough = ray.cluster_resources().get("GPU", 0.0) >= plan.num_workers
        gpus = 1.0 if plan.may_use_gpus and enough else 0.0
    return Room(plan.cpus_per_worker, gpus)


def _check_size(plan: Plan, room: Room) -> None:
    """Raises UserError where the ranks would not fit even if no other program used the cluster."""
    nodes = _nodes()
    if (fitting := _count(nodes, room)) < plan.num_workers:
        asked = f"{room.cpus:g} CPUs and {room.gpus:g} GPUs" if room.gpus else f"{room.cpus:g} CPUs"
        problem = f"the cluster has room for {fitting} workers of {asked} ({len(nodes)} nodes)"
        fix = "lower it, or compute.cpus_per_worker or compute.gpus_per_worker"
        raise UserError(f"compute.num_workers = {plan.num_workers}: {problem}; {fix}")


def _nodes() -> list[Room]:
    """What each living node has."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Room(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def _count(nodes: Sequence[Room], each: Room) -> int:
    """How many ranks fit, each on one node."""

    def fitting(node: Room) -> int:
        of_cpus = node.cpus / each.cpus
        return int(min(of_cpus, node.gpus / each.gpus if each.gpus else math.inf) + 1e-6)

    return sum(map(fitting, nodes))


def _share(plan: Plan, asked: Room) -> Room:
    """The largest part of what was asked for, equal for all ranks, that fits; all of it if nothing does."""
    nodes = _nodes()
    shares = {1.0}
    for node in nodes:
        for count in range(1, plan.num_workers + 1):
            shares.add(node.cpus / count / asked.cpus)
            if asked.gpus:
                shares.add(node.gpus / count / asked.gpus)
    for share in sorted((share for share in shares if 0.0 < share <= 1.0), reverse=True):
        # Ray counts in ten-thousandths, so a share is rounded down.
        room = Room(*(math.floor(amount * share * 1000) / 1000 for amount in asked))
        if room.cpus and bool(room.gpus) == bool(asked.gpus) and _count(nodes, room) >= plan.num_workers:
            return room
    return asked


def _reserve(plan: Plan, room: Room) -> PlacementGroup:
    bundle = {"CPU": room.cpus} | ({"GPU": room.gpus} if room.gpus else {})
    return placement_group([dict(bundle) for _ in range(plan.num_workers)], strategy="PACK")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
