"""`env.step` of our own env under random actions: a training loop without policy and learner."""

from __future__ import annotations

from typing import Any

import torch

from bench._loops import Loop
from pi_incubator.autosize import random_actions
from pi_incubator.compute import plan_compute
from pi_incubator.config import ExperimentConfig
from pi_incubator.envs import make_training_env

BLOCK_STEPS = 10


class EnvLoop(Loop):
    """One iteration is a few control steps of every world, restarts included.

    Raises:
        ConfigError: the config asks for hardware or a compiler that is not here.
    """

    def __init__(self, cfg: ExperimentConfig) -> None:
        plan = plan_compute(cfg)
        self.env = make_training_env(cfg, plan)
        self.actions = random_actions(self.env.spec, BLOCK_STEPS)
        self.facts = {"compute": plan.reasons, "torch_threads": torch.get_num_threads()}

    @torch.no_grad()
    def iterate(self) -> int:
        for action in self.actions:
            self.env.step(action)
        return BLOCK_STEPS * self.env.num_envs

    def synchronize(self) -> None:
        if self.env.device.type == "cuda":
            torch.cuda.synchronize(self.env.device)


def make(settings: dict[str, Any]) -> EnvLoop:
    """The loop of a config given as JSON types."""
    return EnvLoop(ExperimentConfig.model_validate(settings))
