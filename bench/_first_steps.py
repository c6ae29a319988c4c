"""What `pi-bench startup` runs in a fresh process: build worlds, step twice, print when each was done."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def first_steps(task: str, backend: str, num_envs: int, compiled: bool) -> dict[str, Any]:
    """The monotonic clock at the end of each stage, and what was compiled more than once."""
    import torch

    from envs_gpu.make import make_env

    device = torch.device("cuda" if torch.cuda.is_available() and backend != "mujoco" else "cpu")
    ended_s = {"imported": time.monotonic()}
    env = make_env(task, backend=backend, num_envs=num_envs, device=device, compiled=compiled)
    action = torch.zeros(num_envs, env.spec.action_dim, device=device)
    for stage in ("built", "first_step", "second_step"):
        if stage != "built":
            env.step(action)
        if device.type == "cuda":
            torch.cuda.synchronize()
        ended_s[stage] = time.monotonic()
    recompilations = _recompilations(env)
    env.close()
    return {"device": str(device), "ended_s": ended_s, "recompilations": recompilations}


def _recompilations(env: Any) -> int | None:
    """How often calls after the first compiled MJX's program anew; None for other backends."""
    return env.physics._program._cache_size() - 1 if env.physics.name == "mjx" else None


if __name__ == "__main__":
    print(json.dumps(first_steps(**json.loads(sys.argv[1]))))
