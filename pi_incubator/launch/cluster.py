"""The Ray cluster that a training runs on: connected to, or started on this machine, and asked for room."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
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
FIX = "start one with `ray start --head`, or set compute.cluster to null for one of our own"


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
        raise UserError(f"compute.cluster = {address}: is not HOST:PORT, such as 10.0.0.1:6379")
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
    lost a node waits for another one, and then shares what is left among its ranks.

    Args:
        plan: what each rank asks for.
        goes_on: whether the training has run before.
        tell: prints a line.

    Raises:
        UserError: the cluster is too small for a training that begins.
    """
    room = _asked(plan)
    if not goes_on:
        _check_size(plan, room)
    group = _reserve(plan, room)
    if not group.wait(NODE_WAIT_S):
        if goes_on:
            remove_placement_group(group)
            room = _share(plan, room)
            tell(f"the cluster is smaller now: each rank gets {room.cpus:g} CPUs and {room.gpus:g} GPUs")
            group = _reserve(plan, room)
        else:
            tell("other programs have the cluster; waiting for room")
        while not group.wait(NODE_WAIT_S):
            tell("waiting for room in the cluster")
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
    total = ray.cluster_resources()
    for name, field, each in (
        ("CPU", "compute.cpus_per_worker", room.cpus),
        ("GPU", "compute.gpus_per_worker", room.gpus),
    ):
        there, asked = total.get(name, 0.0), plan.num_workers * each
        if asked > there:
            problem = f"{plan.num_workers} workers ask for {asked:g} {name}s, the cluster has {there:g}"
            raise UserError(f"compute.num_workers = {plan.num_workers}: {problem}; lower it, or {field}")


def _share(plan: Plan, asked: Room) -> Room:
    """An equal share of what the cluster has, but not more than was asked for."""
    total = ray.cluster_resources()

    def share(name: str, each: float) -> float:
        there = total.get(name, 0.0) / plan.num_workers
        return min(each, int(there * 1000) / 1000)

    return Room(share("CPU", asked.cpus), share("GPU", asked.gpus))


def _reserve(plan: Plan, room: Room) -> PlacementGroup:
    bundle = {"CPU": room.cpus} | ({"GPU": room.gpus} if room.gpus else {})
    return placement_group([dict(bundle) for _ in range(plan.num_workers)], strategy="PACK")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
