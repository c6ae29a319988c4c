"""How every command ends: a user's mistake is one line on stderr, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from envs_gpu.errors import EnvError, SettingError
from pi_incubator.config import ConfigError
from pi_incubator.errors import UserError

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main` with the command line's arguments and exit with what it returns (None is 0).

    Exits 2 on a UserError or EnvError, 130 on Ctrl-C; any other exception is a bug and keeps its traceback.
    """
    try:
        sys.exit(main(list(sys.argv[1:] if argv is None else argv)))
    except (UserError, EnvError) as error:
        _report(error)
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _report(error: UserError | EnvError) -> None:
    """Print one line; under torchrun also tell it, so that its summary names the reason."""
    is_main = os.environ.get("RANK", "0") == "0"
    if is_main or not isinstance(error, (ConfigError, SettingError)):  # all ranks have the same settings
        print(f"error: {error}", file=sys.stderr)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
