"""The deterministic policy is judged beside training, in worlds of its own."""

from __future__ import annotations

import torch

from envs_gpu.vec_env import VecEnv
from pi_incubator import faults, interruption
from pi_incubator.config import ExperimentConfig
from pi_incubator.envs import evaluation_env, evaluation_seed
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.hooks.hook import Hook, Progress
from pi_incubator.tracking import Tracker
from pi_incubator.training.algorithm import Algorithm


class EvaluationHook(Hook):
    """Logs `evaluation/return` and its standard deviation every `evaluation.every` iterations, on rank 0.

    Training is not affected: the worlds are others, and torch's random numbers are put back.

    Args:
        cfg: reads `evaluation`.
        algorithm: whose policy is judged.
        tracker: takes the numbers.
    """

    def __init__(self, cfg: ExperimentConfig, algorithm: Algorithm, tracker: Tracker) -> None:
        self._cfg, self._algorithm, self._tracker = cfg, algorithm, tracker
        self._worlds: VecEnv | None = None

    def due(self, progress: Progress) -> bool:
        if not self._algorithm.distributed.is_main:
            return False
        every = self._cfg.evaluation.every
        # The last iteration is followed by the evaluation of the run; where a signal came, nobody waits.
        over = progress.is_last or progress.stops
        return every > 0 and not over and (progress.iteration + 1) % every == 0

    def __call__(self, progress: Progress) -> None:
        self._algorithm.settle()
        result = None
        with interruption.given_up_on_signal():
            result = self._judge()
        if result is not None:
            metrics = {"evaluation/return": result["mean"], "evaluation/return_std": result["std"]}
            self._tracker.log(progress.iteration, progress.env_steps, metrics)

    def _judge(self) -> dict[str, float]:
        """Statistics of the returns."""
        cfg, num_episodes = self._cfg, self._cfg.evaluation.num_episodes
        with torch.random.fork_rng(range(torch.cuda.device_count())), self._tracker.span("evaluation"):
            faults.reach("evaluation")
            if self._worlds is None:
                self._worlds = evaluation_env(cfg, num_episodes, self._algorithm.env.device)
            policy = self._algorithm.policy
            return evaluate(self._worlds, policy, num_episodes, evaluation_seed(cfg)).summary()["return"]
