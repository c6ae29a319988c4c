"""One attempt of a training on a Ray cluster: place its ranks, start them, and watch them.

A program of its own, because Ray ends the whole process when the head of the cluster is gone for long.
`launch.ray` starts it, and starts it again where it can be tried again.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pi_incubator.errors import UserError
from pi_incubator.interruption import CLEAN_UP_S, GRACE_S, SIGNALS
from pi_incubator.launch.agent import Agent, Node, Report
from pi_incubator.launch.cluster import Room, connected, reserved
from pi_incubator.launch.plan import Plan, versions

LOST = 75
"""Exit code: ranks were lost, and another attempt may succeed (EX_TEMPFAIL of sysexits.h)."""
POLL_S = 0.1
ANSWER_S = 30.0
"""How long an agent may take to answer."""
START_S = 300.0
"""How long the agents may take to start, on nodes that are busy or install packages."""
SAVE_S = GRACE_S + CLEAN_UP_S + 600.0
"""How long the ranks may take to finish an iteration and save, after a signal."""
ERROR = "error: "
"""How a line begins that tells the user's mistake."""
LAST_WORDS = 20
"""Lines of a rank's output that are shown when it failed."""
LOST_ANOTHER = "another process of this training ended"


class Ranks:
    """The ranks of one attempt, each with its agent.

    Args:
        plan: of the training.
        goes_on: whether there was an attempt before this one.
        group: the room that is reserved for them.
        room: of each.
    """

    def __init__(self, plan: Plan, goes_on: bool, group: PlacementGroup, room: Room) -> None:
        self._plan, self._command = plan, plan.command(goes_on)
        remote = ray.remote(num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=0)(_RankAgent)
        self._agents: list[Any] = [  # handles, on which Ray makes the methods
            remote.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            ).remote()
            for rank in range(plan.num_workers)
        ]
        self.words: list[list[str]] = [[] for _ in self._agents]
        """The last lines that each rank printed."""

    def start(self) -> None:
        """Start every rank with what torchrun would tell it.

        Raises:
            UserError: the nodes do not fit each other.
        """
        nodes: list[Node] = self._ask("look", self._plan.directory, self._command[0], timeout_s=START_S)
        _check_nodes(self._plan, nodes)
        environments = [_environment(rank, nodes) for rank in range(len(nodes))]
        command, directory = self._command, self._plan.directory
        ray.get(
            [
                agent.start.remote(command, environment, directory)
                for agent, environment in zip(self._agents, environments, strict=True)
            ],
            timeout=ANSWER_S,
        )

    def reports(self) -> list[Report]:
        """How every rank is; prints what rank 0 has printed."""
        reports: list[Report] = self._ask("report")
        for rank, report in enumerate(reports):
            self.words[rank] = [*self.words[rank], *report.lines][-LAST_WORDS:]
            if rank == 0:
                for line in report.lines:
                    print(line, file=sys.stderr if line.startswith(ERROR) else sys.stdout, flush=True)
        return reports

    def send(self, signum: int) -> None:
        """Send a signal to every rank."""
        self._ask("send", signum)

    def stop(self) -> None:
        """End every rank at once, as far as its agent still answers."""
        for agent in self._agents:
            with contextlib.suppress(RayError):
                ray.get(agent.stop.remote(), timeout=ANSWER_S)

    def _ask(self, method: str, *arguments: Any, timeout_s: float = ANSWER_S) -> list[Any]:
        calls = [getattr(agent, method).remote(*arguments) for agent in self._agents]
        answers: list[Any] = ray.get(calls, timeout=timeout_s)
        return answers


class _RankAgent(Agent):
    """An agent that Ray tells what it has."""

    def look(self, directory: str, python: str, address: str = "", gpus: Sequence[str] = ()) -> Node:
        given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return super().look(directory, python, ray.util.get_node_ip_address(), given)


class Signals:
    """Signals that ask this program to end: at once, or where ranks run, after they were told."""

    def __init__(self) -> None:
        self.at_once = True
        self.received: int | None = None
        self.install()

    def install(self) -> None:
        """Take the signals."""
        for signum in SIGNALS:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.at_once:
            sys.exit(128 + signum)
        self.received = signum


def attempt(plan: Plan, goes_on: bool) -> int:
    """Run the training until it ends or loses a rank; returns the exit code.

    Args:
        plan: of the training.
        goes_on: whether there was an attempt before this one.

    Raises:
        UserError: the cluster cannot run it.
    """
    signals = Signals()
    with connected(plan, goes_on):
        signals.install()  # again: `ray.init` takes SIGTERM
        try:
            with reserved(plan, goes_on, _tell) as (group, room):
                ranks = Ranks(plan, goes_on, group, room)
                ranks.start()
                signals.at_once = False
                return _watch(ranks, signals)
        except RayTaskError as error:  # of an agent: its node lacks something
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"a node cannot run a rank ({reason}); install the same on all nodes") from None
        except RayError as error:
            _tell(f"a rank or its node was lost ({' '.join(str(error).split())[:120]})")
            return LOST


def _watch(ranks: Ranks, signals: Signals) -> int:
    """Wait until every rank has ended; those that wait for one that failed are ended."""
    deadline_s, passed_on = math.inf, False
    killed: set[int] = set()
    while True:
        codes = [report.exit_code for report in ranks.reports()]
        if signals.received and not passed_on:
            ranks.send(signals.received)
            deadline_s, passed_on = time.monotonic() + SAVE_S, True
        if all(code is not None for code in codes):
            return _outcome(ranks, [code or 0 for code in codes], killed, signals.received)
        if any(codes):  # the others notice, and end by themselves
            deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
        if time.monotonic() > deadline_s:
            killed |= {rank for rank, code in enumerate(codes) if code is None}
            ranks.stop()
        time.sleep(POLL_S)


def _outcome(ranks: Ranks, codes: list[int], killed: Collection[int], signum: int | None) -> int:
    """The exit code of the training; says what went wrong.

    Args:
        ranks: with what they printed last.
        codes: exit codes of all ranks.
        killed: ranks that were ended because another one had failed.
        signum: the signal that asked for the end, if there was one.
    """
    if signum:
        return 128 + signum
    if not any(codes):
        return 0
    # A rank that ends because another one did says so; it is not the cause.
    causes = [
        rank
        for rank, code in enumerate(codes)
        if code and rank not in killed and LOST_ANOTHER not in "\n".join(ranks.words[rank])
    ]
    if causes and all(codes[rank] == UserError.exit_code for rank in causes):
        if 0 not in causes:  # what rank 0 printed has been seen
            _tell(next((line for line in ranks.words[causes[0]] if line.startswith(ERROR)), ""))
        return UserError.exit_code
    for rank in causes:
        _tell(f"rank {rank} {_how(codes[rank])}")
        if rank and ranks.words[rank]:
            _tell("\n".join(f"  {line}" for line in ranks.words[rank]))
    return LOST


def _how(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"


def _check_nodes(plan: Plan, nodes: Sequence[Node]) -> None:
    """All nodes have the folder and the same software.

    Raises:
        UserError: one does not.
    """
    ours = versions()
    for node in nodes:
        if not node.has_directory:
            fix = "start the training in a folder that all nodes share"
            raise UserError(f"node {node.name} has no folder {plan.directory}; {fix}")
        if not node.has_python:
            fix = "install it at the same path on all nodes"
            raise UserError(f"node {node.name} has no Python at {sys.executable}; {fix}")
        for name, wanted in ours.items():
            if (found := node.versions.get(name)) != wanted:
                fix = "install the same everywhere"
                raise UserError(f"node {node.name} has {name} {found}, this machine {wanted}; {fix}")


def _environment(rank: int, nodes: Sequence[Node]) -> dict[str, str]:
    """What torchrun would set for a rank.

    A rank with GPUs of its own sees no others, so it is the only one of its machine that counts for it.
    """
    local = [other for other, node in enumerate(nodes) if node.address == nodes[rank].address]
    alone = bool(nodes[rank].gpus)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(nodes)),
        "LOCAL_RANK": "0" if alone else str(local.index(rank)),
        "LOCAL_WORLD_SIZE": "1" if alone else str(len(local)),
        "MASTER_ADDR": nodes[0].address,
        "MASTER_PORT": str(nodes[0].free_port),
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Returns the exit code; arguments: the plan as JSON, whether the training has run before (0 or 1)."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's default of later versions
    try:
        return attempt(Plan.from_json(argv[0]), goes_on=argv[1] == "1")
    except UserError as error:
        _tell(f"error: {error}")
        return UserError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
