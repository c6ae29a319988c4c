"""A loop in a process of its own, told through a pipe when to run; while others are measured it sleeps.

So that no thread of one loop competes with another loop, and no setting of one reaches another. Requests and
answers are lines of JSON: the answer to the start is the loop's facts, to a `Budget` what it got done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from bench._loops import Loop, ScoredLoop
from bench._machine import fresh_environment
from pi_incubator.errors import UserError


class Budget(NamedTuple):
    """How much to run: whole iterations until `seconds` have passed, or `iterations` of them.

    With `until_return` it also ends after the iteration whose recent return reaches that.
    """

    seconds: float = 0.0
    iterations: int = 1
    until_return: float | None = None


class Slice(NamedTuple):
    """What a loop got done in one turn."""

    env_steps: int
    wall_s: float
    recent_return: float | None = None
    """At its end, where the budget asked for one."""
    updates: int = 0
    """Optimizer steps; 0 where the loop does not count them."""

    @property
    def steps_per_s(self) -> float:
        return self.env_steps / self.wall_s

    @property
    def updates_per_s(self) -> float:
        return self.updates / self.wall_s


class Worker:
    """The parent's end; `ready_s` is how long building, compiling and warming up took.

    Args:
        loop: the name of a file in `bench/_loops`.
        settings: for its `make`, as JSON types.
        checkout: folder of another checkout of this project whose loop it is; None is this one.

    Raises:
        UserError: the loop cannot be built with these settings.
    """

    def __init__(self, loop: str, settings: dict[str, Any], checkout: str | None = None) -> None:
        began_s = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench._worker", loop, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=fresh_environment(PYTHONPATH=checkout) if checkout else fresh_environment(),
        )
        self._loop = loop
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise
        self.ready_s = time.perf_counter() - began_s

    def run(self, budget: Budget) -> Slice:
        """Wake the loop, and wait until it has used up its budget."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(budget._asdict()) + "\n")
        self._process.stdin.flush()
        return Slice(**self._answer())

    def close(self) -> None:
        """End the process; it has nothing to save."""
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the process of {self._loop} ended with {self._process.wait()}; its errors are above"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer


def serve(loop: Loop, requests: TextIO, answers: TextIO) -> None:
    """The child's end: warm up, then run a slice for every request until the pipe closes."""
    loop.warm_up()
    _send(answers, loop.facts)
    for line in requests:
        _send(answers, run_slice(loop, Budget(**json.loads(line)))._asdict())


def run_slice(loop: Loop, budget: Budget) -> Slice:
    """Run whole iterations until both the seconds and the iterations of `budget` are used up."""
    env_steps = num_iterations = 0
    recent_return, updates_before = None, loop.num_updates
    began_s = time.perf_counter()
    while num_iterations < budget.iterations or time.perf_counter() - began_s < budget.seconds:
        env_steps += loop.iterate()
        num_iterations += 1
        if budget.until_return is not None:
            assert isinstance(loop, ScoredLoop)  # others are refused before anything is started
            recent_return = loop.recent_return()
            if recent_return is not None and recent_return >= budget.until_return:
                break
    loop.synchronize()
    wall_s = time.perf_counter() - began_s
    return Slice(env_steps, wall_s, recent_return, loop.num_updates - updates_before)


def main(name: str, settings: str) -> None:
    """Serve the loop `name`; what it prints goes to stderr, because stdout carries the answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        loop = import_module(f"bench._loops.{name}").make(json.loads(settings))
    except UserError as error:
        _send(answers, {"error": str(error)})
        return
    serve(loop, sys.stdin, answers)


def _send(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
