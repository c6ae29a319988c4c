"""Our own training: the algorithm that `run` builds, iterated as the training loop does."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch._dynamo.utils import counters

from bench._loops import RECENT_EPISODES, ScoredLoop
from pi_incubator.algorithms import algorithm_class
from pi_incubator.checkpoint import Part
from pi_incubator.compute import plan_compute
from pi_incubator.config import ExperimentConfig
from pi_incubator.distributed import Distributed
from pi_incubator.hooks.logging import to_numbers
from pi_incubator.training.off_policy import OffPolicy

MAX_TOTAL_STEPS = 2**53


class OurLoop(ScoredLoop):
    """Collects, updates, and reads the metrics as often as training does.

    Raises:
        UserError, EnvError: the config asks for hardware or a compiler that is not here.
    """

    def __init__(self, cfg: ExperimentConfig, distributed: Distributed = Distributed()) -> None:  # noqa: B008
        plan = plan_compute(cfg)
        torch.manual_seed(cfg.experiment.seed)
        self.cfg = _endless(cfg)
        kind = algorithm_class(cfg)
        self.env = kind.make_env(self.cfg, plan, None, distributed)
        self.algorithm = kind(self.cfg, self.env, distributed, plan)
        self.recent = RecentReturns()
        self.has_learned, self._num_updates = False, 0
        self.facts = {
            "compute": plan.reasons,
            "torch_threads": torch.get_num_threads(),
            "num_parameters": _num_parameters(self.algorithm.parts()),
        }

    def iterate(self) -> int:
        algorithm, before = self.algorithm, self.algorithm.env_steps
        algorithm.collect()
        metrics = algorithm.update()
        self.has_learned |= bool(metrics)  # some algorithms fill a buffer first
        if isinstance(algorithm, OffPolicy):
            self._num_updates += algorithm.num_updates()
        if algorithm.iteration % self.cfg.training.log_every == 0:
            to_numbers(metrics)
            self.recent.add(algorithm.pop_metrics())
        return algorithm.env_steps - before

    @property
    def num_updates(self) -> int:
        return self._num_updates

    def warm_up(self) -> None:
        num_graphs = None
        while not self.has_learned or num_graphs != counters["stats"]["unique_graphs"]:
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


def _num_parameters(parts: dict[str, Part]) -> int:
    """Trained numbers of all networks, each counted once."""
    modules = [part.value for part in parts.values() if isinstance(part.value, torch.nn.Module)]
    return sum(parameter.numel() for parameter in torch.nn.ModuleList(modules).parameters())


def make(settings: dict[str, Any], distributed: Distributed = Distributed()) -> OurLoop:  # noqa: B008
    """The loop of a config given as JSON types."""
    return OurLoop(ExperimentConfig.model_validate(settings), distributed)


def _endless(cfg: ExperimentConfig) -> ExperimentConfig:
    """`cfg` without its end: in a longer measurement a scheduled learning rate would pass zero."""
    training = cfg.training.model_copy(update={"total_steps": MAX_TOTAL_STEPS})
    return cfg.model_copy(update={"training": training})
