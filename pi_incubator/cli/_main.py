"""How every command ends: a user's mistake is one line on stderr, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from envs_gpu.errors import EnvError
from pi_incubator.errors import UserError

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main` with the command line's arguments and exit with what it returns (None is 0).

    Exits 2 on a UserError or EnvError, 130 on Ctrl-C; any other exception is a bug and keeps its traceback.
    """
    try:
        sys.exit(main(list(sys.argv[1:] if argv is None else argv)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except EnvError as error:  # a SettingError that nobody could give a file is one too
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
