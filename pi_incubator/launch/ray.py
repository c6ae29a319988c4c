"""`pi-train --launcher ray`: the ranks of a training on the nodes of a Ray cluster.

Each rank is the process that torchrun would start: it calls `run()`. Ray finds room for the ranks, starts
them, and notices when a node is lost; then all ranks start again, from the newest checkpoint. Ray Train's own
worker groups are not used: they call the training from a second thread, where signals cannot be handled, and
bring their own process group and checkpoints beside ours (docs/decisions/0011-ray-places-processes.md).
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from pi_incubator.errors import UserError
from pi_incubator.interruption import SAME_REQUEST_S, SIGNALS
from pi_incubator.launch.agent import end_with_parent
from pi_incubator.launch.plan import Plan

FINAL = (0, UserError.exit_code, 128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit codes behind which nothing is tried again."""
GCS_TIMEOUT_S = "20"
"""How long Ray's processes wait for a head that is gone before they end."""
PAUSE_S = 1.0
TOKEN_FILE = Path(".ray") / "auth_token"
"""Where Ray's command line keeps the token of a cluster, below the home folder."""


def train(plan: Plan) -> int:
    """Run the training; returns the exit code of the command.

    Args:
        plan: see `launch.plan.make_plan`.

    Raises:
        UserError: Ray is not installed, or the training failed as often as it may.
    """
    _check_ray()
    for number in range(plan.max_restarts + 1):
        code = _attempt(plan, goes_on=number > 0)
        if code in FINAL:
            return code
        if number < plan.max_restarts:
            print(f"starting all ranks again ({number + 1} of {plan.max_restarts})", file=sys.stderr)
            time.sleep(PAUSE_S)
    fix = "see the messages above; the same command goes on from the newest checkpoint"
    raise UserError(f"the training was started {plan.max_restarts + 1} times and failed each time; {fix}")


def _check_ray() -> None:
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError("--launcher ray needs Ray; pip install -e '.[launch]'") from None


def _access(plan: Plan) -> dict[str, str]:
    """Variables that say how to be let in; Ray reads them when it is imported.

    Any program of this machine could reach the ports of a cluster of our own, so it asks for a token.
    """
    if plan.address is None:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    has_token = "RAY_AUTH_TOKEN" in os.environ or (Path.home() / TOKEN_FILE).exists()
    return {"RAY_AUTH_MODE": "token" if has_token else "disabled"}


def _attempt(plan: Plan, goes_on: bool) -> int:
    """One run of `launch.driver`, to which signals are passed on; a second signal ends it at once.

    Returns:
        Its exit code; after a signal, 128 and the signal's number.
    """
    command = [sys.executable, "-m", "pi_incubator.launch.driver", plan.to_json(), str(int(goes_on))]
    environment = {"RAY_gcs_rpc_server_reconnect_timeout_s": GCS_TIMEOUT_S, **os.environ, **_access(plan)}
    # In a session of its own: Ctrl-C reaches it once, through us.
    driver = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=end_with_parent)
    received: list[tuple[int, float]] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if not received:
            driver.send_signal(signum)
            received.append((signum, now_s))
        elif now_s - received[0][1] > SAME_REQUEST_S:
            driver.kill()

    before = {signum: signal.signal(signum, pass_on) for signum in SIGNALS}
    try:
        code = driver.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        driver.kill()
    return 128 + received[0][0] if received else code
