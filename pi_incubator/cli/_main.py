"""How every command ends: a user's mistake is one line on stderr, never a traceback."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from envs_gpu.errors import EnvError, SettingError
from pi_incubator import faults, interruption
from pi_incubator.cli._output import protect_output
from pi_incubator.config import ConfigError
from pi_incubator.errors import UserError
from pi_incubator.interruption import Interrupted
from pi_incubator.masking import masked

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT
MACHINE_FIXES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check the disk",
    errno.ENOMEM: "free some memory",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What a user can do about a machine that refuses something; other numbers of OSError are our bugs."""


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main` with the command line's arguments and exit with what it returns (None is 0).

    Exits 2 on a UserError, an EnvError, or a machine that refuses to read or write; 128 + the signal's number
    on SIGTERM and SIGINT. Any other exception is a bug and keeps its traceback.
    """
    protect_output()
    if argv is None:
        _silence_resource_tracker()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        faults.arm()
        with interruption.handled():
            sys.exit(main(arguments))
    except (UserError, EnvError) as error:
        _report(error)
        sys.exit(UserError.exit_code)
    except Interrupted as stop:
        if _is_main():
            print(_how_to_go_on(stop), file=sys.stderr)
        if argv is None:  # this process has nothing else to do
            _end_now(stop.exit_code)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in MACHINE_FIXES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _report(UserError(f"{where}{error.strerror}; {MACHINE_FIXES[error.errno]}, then run this again"))
        sys.exit(UserError.exit_code)


def _silence_resource_tracker() -> None:
    """Let Python's process that removes semaphores do so without a warning, which no user can act on.

    After a signal it may find some, for `_end_now` leaves those of libraries, such as tqdm's, to it. It reads
    the variable when it starts, which is at the first semaphore.
    """
    given = os.environ.get("PYTHONWARNINGS")
    ours = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{given},{ours}" if given else ours


def _end_now(exit_code: int) -> NoReturn:
    """End without Python's clean-up, which waits for seconds for threads and for processes that compile."""
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _how_to_go_on(stop: Interrupted) -> str:
    """One line: what happened, what is saved, and the command that continues."""
    if not stop.state:  # nothing of a run was changed
        return str(stop)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        command = " ".join(["the same torchrun command", *stop.settings])
    else:
        program, *arguments = sys.orig_argv
        if arguments and Path(arguments[0]).name.startswith("pi-"):  # an installed command
            program, *arguments = Path(arguments[0]).name, *arguments[1:]
        command = shlex.join([program, *arguments, *stop.settings])
    return masked(f"{stop}; continue with: {command}")


def _report(error: UserError | EnvError) -> None:
    """Print one line; under torchrun also tell it, so that its summary names the reason."""
    if _is_main() or not isinstance(error, (ConfigError, SettingError)):  # all ranks have the same settings
        print(masked(f"error: {error}"), file=sys.stderr)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
