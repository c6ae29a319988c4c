"""What on-policy algorithms share: a policy and a value function fill a rollout, then learn from it.

Letters: T horizon, N worlds, A actions, S state width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.compiled import compiled as compile_function
from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithm import RolloutSettings
from pi_incubator.data.rollout import Rollout
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.distributed import Distributed
from pi_incubator.layers.encoder import restarted
from pi_incubator.networks import make_network
from pi_incubator.policies.actor_critic import ActorCritic, Decision, ValueFunction
from pi_incubator.policies.categorical import CategoricalPolicy
from pi_incubator.policies.gaussian import GaussianPolicy
from pi_incubator.policies.stochastic import StochasticPolicy
from pi_incubator.training.algorithm import Algorithm
from pi_incubator.training.overlap import OverlappedUpdates

Settings = TypeVar("Settings", bound=RolloutSettings)
ActFunction = Callable[[dict[str, Tensor], Tensor, Tensor], Decision]


class OnPolicy(Algorithm[Settings]):
    """Collects T steps of every world with the newest policy, and learns from them once.

    With `training.overlap` the next rollout is collected while the last one is learned from.
    """

    policy: StochasticPolicy

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        self.policy = self.make_policy(cfg, env.spec)
        self.critic = self.make_critic(env.spec).to(env.device)
        self.model = ActorCritic(self.policy, self.critic)
        self.overlapped = self._overlapped()
        self.actor = self.overlapped.actor if self.overlapped else self.model
        self.rollout = Rollout(self.settings.horizon, env.spec, self.model.groups, self.model.state_width)
        self.noise = ShardedRandom(cfg.experiment.seed, "action noise", self.shards, env.device)
        self.act = make_act(self.actor, compute.compiled, compute.autocast)

    def make_critic(self, spec: EnvSpec) -> ValueFunction:
        """The untrained value function; `NoCritic` for an algorithm that needs none."""
        return ValueFunction(make_network(self.cfg.network, spec), self.policy)

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> StochasticPolicy:
        kind = GaussianPolicy if spec.num_choices is None else CategoricalPolicy
        return kind(cfg.network, make_network(cfg.network, spec), spec).to(spec.device)

    @abstractmethod
    def advantage(self, data: TensorDict) -> None:
        """Write `advantage` and `value_target` into a rollout's data of batch `[T, N]`."""

    @abstractmethod
    def learn(self, data: TensorDict) -> dict[str, Tensor]:
        """Optimize `model` on a rollout's data; returns 0-dim metrics."""

    def collect(self) -> None:
        self.noise.normal_(self.rollout.noise)
        collect(self.env, self.actor, self.act, self.rollout)

    def update(self) -> dict[str, Tensor]:
        data = self.rollout.data
        self.advantage(data)
        if self.overlapped:
            metrics = self.overlapped.update(data)
        else:
            metrics = self.learn(data)
            self.policy.normalizer.commit(self.distributed.merge_moments)
        self._finish_iteration()
        return metrics

    def settle(self) -> None:
        if self.overlapped:
            self.overlapped.settle()

    def networks_at_rest(self) -> Sequence[torch.nn.Module]:
        if self.overlapped and self.overlapped.is_learning:
            return (self.actor,)
        return self.actor, self.model

    def parts(self) -> dict[str, Part]:
        parts = super().parts() | {
            "critic": Part(self.critic, is_learned=True),
            "noise": Part(self.noise, per_rank=True),
        }
        if self.model.state_width:
            parts["rollout"] = Part(self.rollout, per_rank=True)
        if self.overlapped:
            parts["actor"] = Part(self.overlapped)
        return parts

    def _overlapped(self) -> OverlappedUpdates | None:
        if not self.cfg.training.overlap:
            return None
        if self.distributed.world_size > 1:
            problem, fix = "is for one process; several overlap by themselves", "set it to false"
            raise SettingError("training.overlap", True, problem, fix)
        return OverlappedUpdates(self.learn, self.model)


@torch.no_grad()
def collect(env: VecEnv, model: ActorCritic, act: ActFunction, rollout: Rollout) -> None:
    """Fill `rollout`, whose noise is drawn, with T steps of every world from where `env` stands.

    An episode that was truncated is bootstrapped with the state that the critic had at its end, before the
    state of its world is zeroed for the next episode.
    """
    state = rollout.begin()
    for t in range(rollout.horizon):
        obs = dict(env.obs.items())
        model.policy.normalizer.observe(obs)
        decision = act(obs, state, rollout.noise[t])
        rollout.store_decision(t, decision)
        result = env.step(decision.action)
        rollout.store_result(t, result, partial(model.value, state=decision.state))
        state = decision.state
        if model.state_width:
            state = restarted(state, result.terminated | result.truncated)
    rollout.end(state, model.value(env.obs, state))


def make_act(model: ActorCritic, compiled: bool, autocast: str = "none") -> ActFunction:
    """The function that acts: in the precision of the updates, and compiled if asked for."""
    act = model.act if autocast == "none" else _Bfloat16(model).act
    return compile_function(act) if compiled else act


class _Bfloat16:
    """An actor-critic that acts with the rounding of an update under autocast.

    So a rollout's log-probabilities are those that the first minibatch finds, and their ratio is one.
    """

    def __init__(self, model: ActorCritic) -> None:
        self._model = model

    def act(self, obs: dict[str, Tensor], state: Tensor, noise: Tensor) -> Decision:
        with torch.autocast(noise.device.type, torch.bfloat16):
            decision = self._model.act(obs, state, noise)
        return decision._replace(state=decision.state.to(state.dtype))


def observations_of(data: TensorDict, groups: tuple[str, ...]) -> Mapping[str, Tensor]:
    """The stored observation groups of a rollout or a minibatch."""
    return {group: data[group] for group in groups}
