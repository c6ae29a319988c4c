"""What algorithms share that collect steps into a replay buffer and learn from it.

Letters: N worlds, A actions, S state width.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import NamedTuple, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import EnvSpec, StepResult, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithm import BufferSettings
from pi_incubator.data.replay.replay import Replay, steps_of
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.layers.encoder import restarted
from pi_incubator.networks import make_network
from pi_incubator.policies.bounded import BoundedPolicy
from pi_incubator.policies.categorical import CategoricalPolicy
from pi_incubator.training.algorithm import Algorithm
from pi_incubator.training.background import make_background
from pi_incubator.training.state import NamedTensors

Settings = TypeVar("Settings", bound=BufferSettings)

log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """A step that the worlds will take."""

    obs: dict[str, Tensor]
    """Group -> `[N, D]` before it."""
    state: Tensor
    """`[N, S]` of the policy before it."""
    action: Tensor
    """`[N, A]`."""
    next_state: Tensor
    """`[N, S]` after it, where the episode goes on."""


class Buffered(Algorithm[Settings]):
    """Collects some steps of every world, then takes `updates_per_step` optimizer steps for each of them.

    With `training.overlap` the worlds take their step while the optimizer steps go on, which learn from the
    steps before it.

    A concrete algorithm sets `policy`, makes the buffer and takes the optimizer steps.
    """

    policy: BoundedPolicy | CategoricalPolicy
    report_names: tuple[str, ...]
    """Names of the numbers that `step` reports."""

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        seed, device = cfg.experiment.seed, env.device
        self.network = make_network(cfg.network, env.spec)
        self.policy = self.make_policy(cfg, env.spec)
        self.noise = ShardedRandom(seed, "action noise", self.shards, device)
        self.sampling = ShardedRandom(seed, "replay", self.shards, device)
        self.learning_noise = ShardedRandom(seed, "learning noise", self.shards, device)
        self.state = self.policy.initial_state(env.num_envs)
        """`[N, S]` of the policy before the next step."""
        self.stored_groups, self.replay = self.make_buffer()
        self.background = make_background(device) if cfg.training.overlap else None
        self.begun: Choice | None = None
        """The step that the worlds are taking beside an update."""

    @staticmethod
    @abstractmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> BoundedPolicy | CategoricalPolicy: ...

    @abstractmethod
    def make_buffer(self) -> tuple[tuple[str, ...], Replay]:
        """The observation groups that are stored, and the empty buffer."""

    @abstractmethod
    def minibatch(self, size: int) -> TensorDict:
        """A minibatch as `step` takes it."""

    @abstractmethod
    def step(self, minibatch: TensorDict) -> Tensor:
        """One optimizer step on a minibatch; gives a report."""

    def make_noise(self) -> Tensor:
        """The exploration noise `[N, A]` of the next step, standard normal."""
        noise = torch.empty(1, self.env.num_envs, self.env.spec.action_dim, device=self.env.device)
        self.noise.normal_(noise)
        return noise[0]

    def scale_noise(self, noise: Tensor) -> Tensor:
        """The exploration noise `[N, A]` that the policy acts with, from a standard normal one."""
        return noise

    def observe(self, result: StepResult) -> None:
        """Look at what a step of the worlds gave, beside storing it."""

    def commit(self) -> None:
        """Let the ranks' moments of what was observed count from now on."""
        self.policy.normalizer.commit(self.distributed.merge_moments)

    def note(self, minibatch: TensorDict) -> None:
        """Look at a minibatch that was learned from."""

    @torch.no_grad()
    def collect(self) -> None:
        if self.background:
            self.begun = self._choose(0)
            self.background.start(self.env.step, self.begun.action)
        else:
            for t in range(self.settings.horizon):
                choice = self._choose(t)
                self._store(choice, self.env.step(choice.action))
            self.commit()
        self._finish_iteration()

    def update(self) -> dict[str, Tensor]:
        metrics = self._learn()
        if self.background:
            assert self.begun is not None
            self._store(self.begun, self.background.finish())
            self.commit()
        return metrics

    def close(self) -> None:
        try:
            if self.background and self.background.runs:
                self.background.finish()
        except Exception as error:
            log.warning("the last step of the worlds failed (%s)", error)
        finally:
            super().close()

    def _choose(self, t: int) -> Choice:
        """What the policy, or chance, does in step `t` of the iteration."""
        env, policy = self.env, self.policy
        obs = {group: value.clone() for group, value in env.obs.items()}
        policy.normalizer.observe(obs)
        state, noise = self.state.clone(), self.make_noise()
        decision = policy.act(obs, state, self.scale_noise(noise))
        action, following = decision.action, decision.state
        steps_of_all = env.num_envs * self.distributed.world_size
        if self.env_steps + t * steps_of_all < self.settings.learning_starts:
            action = policy.random_action(noise)
            following = policy.state_after(decision.features, following, action)
        return Choice(obs, state, action, following)

    @torch.no_grad()
    def _store(self, choice: Choice, result: StepResult) -> None:
        self.observe(result)
        self.replay.add(steps_of(choice.obs, choice.state, choice.action, result, self.stored_groups))
        self.state.copy_(restarted(choice.next_state, result.terminated | result.truncated))

    def _learn(self) -> dict[str, Tensor]:
        """All optimizer steps of an iteration; gives the means of their reports."""
        totals = torch.zeros(len(self.report_names), device=self.env.device)
        num_updates = self.num_updates()
        for _ in range(num_updates):
            minibatch = self.minibatch(self.settings.batch_size)
            totals += self.step(minibatch)
            self.note(minibatch)
        metrics = dict(zip(self.report_names, (totals / max(1, num_updates)).unbind(), strict=True))
        return metrics if num_updates else {}

    def parts(self) -> dict[str, Part]:
        parts = super().parts() | {
            "replay": Part(
                self.replay, self.settings.save_buffer, per_rank=True, any_size=True, is_large=True
            ),
            "noise": Part(self.noise, per_rank=True),
            "sampling": Part(self.sampling, per_rank=True),
            "learning_noise": Part(self.learning_noise, per_rank=True),
        }
        if self.policy.state_width:
            parts["state"] = Part(NamedTensors(state=self.state), per_rank=True)
        return parts

    def num_updates(self) -> int:
        """Optimizer steps that the environment steps of the last iteration are worth.

        None for random actions, and none while a buffer that was not saved is filled again.
        """
        starts, per_step = self.settings.learning_starts, self.settings.updates_per_step
        enough = min(starts // self.distributed.world_size, self.replay.capacity)
        if len(self.replay) < max(enough, self.replay.fewest):
            return 0
        now = max(0, self.env_steps - starts)
        before = max(0, now - self.cfg.steps_per_iteration * self.distributed.world_size)
        return int(now * per_step) - int(before * per_step)
