"""What can go wrong while a policy runs, and somebody can mend: one line each."""

from __future__ import annotations


class PolicyRuntimeError(ValueError):
    """One clear line: what is wrong and what to do. Commands print it without a traceback and exit 2."""

    exit_code = 2

    def __str__(self) -> str:
        # File names and other libraries' messages may carry line breaks; the report stays one line.
        return " ".join(super().__str__().split())


class RuntimeBundleError(PolicyRuntimeError):
    """A bundle, its contract, its network or its engine cannot be used."""


class ObservationError(PolicyRuntimeError):
    """An observation does not have the terms or the width that the contract names."""


class LinkError(PolicyRuntimeError):
    """The link to the robot or the simulator cannot be opened."""


class ScheduleError(PolicyRuntimeError):
    """The system does not permit the real-time priority that was asked for."""


class LogError(PolicyRuntimeError):
    """A log cannot be written or read."""
