"""On a GPU the host waits for nothing between two log steps."""

import pytest
import torch

from bench._loops.pi_incubator import OurLoop
from pi_incubator.config import ExperimentConfig


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_collect_and_update_never_wait_for_the_device(overlap):
    cfg = ExperimentConfig.model_validate(
        {
            "env": {"name": "cartpole_balance", "backend": "warp", "num_envs": 64},
            "algorithm": {"horizon": 16, "minibatch_size": 256},
            "training": {"overlap": overlap},
            "compute": {"device": "cuda"},
        }
    )
    loop = OurLoop(cfg)
    for _ in range(3):  # compiles and captures
        loop.iterate()
    loop.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            loop.algorithm.collect()
            loop.algorithm.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
