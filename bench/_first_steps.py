"""What `pi-bench startup` runs in a fresh process: build worlds, step twice, print when each was done."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

COMPILATION_EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts the programs that JAX builds, where the backend is JAX's."""

    def __init__(self, backend: str) -> None:
        self.count: int | None = None
        if backend == "mjx":
            import jax

            self.count = 0
            jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if self.count is not None:
            self.count += event == COMPILATION_EVENT


def first_steps(task: str, backend: str, num_envs: int, compiled: bool) -> dict[str, Any]:
    """The monotonic clock, and the number of JAX's compilations so far, at the end of each stage."""
    import torch

    from envs_gpu.make import make_env  # before jax, which reads its settings once

    device = torch.device("cuda" if torch.cuda.is_available() and backend != "mujoco" else "cpu")
    compilations = Compilations(backend)
    stages = {"imported": (time.monotonic(), compilations.count)}
    env = make_env(task, backend=backend, num_envs=num_envs, device=device, compiled=compiled)
    action = torch.zeros(num_envs, env.spec.action_dim, device=device)
    for stage in ("built", "first_step", "second_step"):
        if stage != "built":
            env.step(action)
        if device.type == "cuda":
            torch.cuda.synchronize()
        stages[stage] = (time.monotonic(), compilations.count)
    env.close()
    return {"device": str(device), "stages": stages}


if __name__ == "__main__":
    print(json.dumps(first_steps(**json.loads(sys.argv[1]))))
