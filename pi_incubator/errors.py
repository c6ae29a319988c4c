"""Errors a user can cause and mend."""

from __future__ import annotations

from pi_incubator.masking import masked


class UserError(Exception):
    """One clear line for the user: what is wrong and what to do. Commands print it without a traceback."""

    exit_code = 2

    def __str__(self) -> str:
        # File names, keys and parser messages may carry line breaks; the report stays one line.
        return masked(" ".join(super().__str__().split()))


class StateError(ValueError):
    """A saved state that its part cannot continue from; `checkpoint.restore` adds the file.

    `load_state_dict` raises it where the state is to blame. Any other error is a bug and keeps its traceback.
    """


class DivergedError(UserError):
    """Training left numbers that are not finite."""
