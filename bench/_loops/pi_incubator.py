"""Our own training loop: the parts that `train` builds, called in its order."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch._dynamo.utils import counters

from bench._loops import RECENT_EPISODES, ScoredLoop
from pi_incubator.algorithms import make_algorithm
from pi_incubator.compute import plan_compute
from pi_incubator.config import ExperimentConfig
from pi_incubator.networks import make_network
from pi_incubator.trainers.on_policy import collect, due, make_act, make_training_env, overlap, to_numbers
from pi_incubator.trainers.rollout import Rollout

MAX_TOTAL_STEPS = 2**53


class OurLoop(ScoredLoop):
    """Collect, advantage and update, and reading the metrics as often as training does.

    Raises:
        ConfigError: the config asks for hardware or a compiler that is not here.
    """

    def __init__(self, cfg: ExperimentConfig) -> None:
        plan = plan_compute(cfg)
        torch.manual_seed(cfg.experiment.seed)
        self.cfg = _endless(cfg)
        self.env = make_training_env(self.cfg, plan)
        self.policy = make_network(cfg.network, self.env.spec)
        self.learner = make_algorithm(self.cfg, self.policy, plan.compiled)
        self.actor = self.policy
        if cfg.training.overlap:
            self.learner, self.actor = overlap(self.learner, self.policy)
        policy = self.policy
        self.rollout = Rollout(cfg.algorithm.horizon, self.env.spec, policy.groups, policy.state_width)
        self.act = make_act(self.actor, plan.compiled)
        self.iteration = 0
        self.recent = RecentReturns()
        self.facts = {
            "compute": plan.reasons,
            "torch_threads": torch.get_num_threads(),
            "num_parameters": sum(parameter.numel() for parameter in self.policy.parameters()),
        }

    def iterate(self) -> int:
        collect(self.env, self.actor, self.act, self.rollout)
        self.learner.advantage(self.rollout.data)
        metrics = self.learner.update(self.rollout.data)
        if due(self.iteration, self.cfg.training.log_every):
            to_numbers(metrics)
            self.recent.add(self.env.pop_metrics())
        self.iteration += 1
        return self.cfg.batch_size

    def warm_up(self) -> None:
        num_graphs = None
        while num_graphs != counters["stats"]["unique_graphs"]:
            num_graphs = counters["stats"]["unique_graphs"]
            self.iterate()
        self.synchronize()

    def recent_return(self) -> float | None:
        self.recent.add(self.env.pop_metrics())
        return self.recent.mean()

    def synchronize(self) -> None:
        if self.env.device.type == "cuda":
            torch.cuda.synchronize(self.env.device)


class RecentReturns:
    """The mean over the last RECENT_EPISODES episodes, from means over a few at a time."""

    def __init__(self) -> None:
        self._groups: deque[tuple[float, float]] = deque()  # mean return, number of episodes
        self._total = 0.0

    def add(self, metrics: dict[str, float]) -> None:
        """Take what `pop_metrics` of an env gave."""
        count = metrics.get("episode/count", 0.0)
        if not count:
            return
        self._groups.append((metrics["episode/return"], count))
        self._total += count
        while self._total - self._groups[0][1] >= RECENT_EPISODES:
            self._total -= self._groups.popleft()[1]

    def mean(self) -> float | None:
        """None while there are fewer; the oldest group counts with as many episodes as are missing."""
        if self._total < RECENT_EPISODES:
            return None
        (oldest, count), *newer = self._groups
        left = count - (self._total - RECENT_EPISODES)
        return (oldest * left + sum(mean * number for mean, number in newer)) / RECENT_EPISODES


def make(settings: dict[str, Any]) -> OurLoop:
    """The loop of a config given as JSON types."""
    return OurLoop(ExperimentConfig.model_validate(settings))


def _endless(cfg: ExperimentConfig) -> ExperimentConfig:
    """`cfg` without its end: in a longer measurement a scheduled learning rate would pass zero."""
    training = cfg.training.model_copy(update={"total_steps": MAX_TOTAL_STEPS})
    return cfg.model_copy(update={"training": training})
