"""What every network with a memory offers: act and value that carry a state, and features of sequences.

A state is one float32 row `[S]` a world, zeros at the start of an episode; whatever a network remembers is
packed into it. Who steps the worlds keeps the rows and zeroes those of worlds that start anew (`restarted`).

Letters: T steps, N worlds, A actions, D observation width, F features, S state width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.models import NetworkSection
from pi_incubator.networks._actor_critic import Act, ActorCritic


class Memory(nn.Module, ABC):
    """An encoder that remembers: one file of the zoo brings one."""

    state_width: int
    """S."""

    @abstractmethod
    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: `[N, D]` and `[N, S]` -> features `[N, F]` and the next state `[N, S]`."""

    def sequence(self, observation: Tensor, state: Tensor, begins: Tensor) -> Tensor:
        """Features `[T, N, F]` of a sequence, the same as step by step.

        Args:
            observation: `[T, N, D]`.
            state: `[N, S]` before the first step.
            begins: `[T, N]` bool, where a step is the first of an episode, and so starts from zeros.
        """
        features = []
        for t in range(len(observation)):
            feature, state = self(observation[t], restarted(state, begins[t]))
            features.append(feature)
        return torch.stack(features)


class StatefulActorCritic(ActorCritic):
    """An actor and a critic, each with a memory of what its group of observations told it.

    A world's state holds the actor's first, then the critic's.

    Args:
        cfg: normalization and initial exploration.
        spec: the env's observation groups and action limits.
        memories: the actor's and the critic's, of their normalized groups.
        actor: features of the actor's memory `[N, F]` -> mean action `[N, A]`.
        critic: features of the critic's memory `[N, F]` -> value `[N, 1]`.
    """

    def __init__(
        self,
        cfg: NetworkSection,
        spec: EnvSpec,
        memories: tuple[Memory, Memory],
        actor: nn.Module,
        critic: nn.Module,
    ) -> None:
        super().__init__(cfg, spec, actor, critic)
        self.actor_memory, self.critic_memory = memories
        self.actor_features, self.critic_features = "actor", "critic"
        self.actor_state_width = self.actor_memory.state_width
        self.state_width = self.actor_state_width + self.critic_memory.state_width

    def initial_state(self, num_worlds: int) -> Tensor:
        """The state at the start of an episode, `[num_worlds, S]`."""
        return self.log_std.new_zeros(num_worlds, self.state_width)

    def act(self, obs: dict[str, Tensor], noise: Tensor, state: Tensor | None = None) -> Act:
        """Sample actions from raw observations and `state` `[N, S]`; `noise` `[N, A]` is standard normal.

        Raises:
            TypeError: no state is given.
        """
        normalized = self.normalize(obs)
        actor_state, critic_state = self._split(state)
        features, actor_state = self.actor_memory(normalized[self.actor_group], actor_state)
        critic_features, critic_state = self.critic_memory(normalized[self.critic_group], critic_state)
        mean, std = self.distribution(features)
        log_prob = torch.distributions.Normal(mean, std, validate_args=False).log_prob(mean + std * noise)
        value = self.critic(critic_features).squeeze(-1)
        state = torch.cat((actor_state, critic_state), -1)
        return Act(normalized, mean + std * noise, log_prob.sum(-1), value, state)

    def value(self, obs: dict[str, Tensor] | TensorDict, state: Tensor | None = None) -> Tensor:
        """Value `[N]` of raw observations, where the steps before left `state` `[N, S]`.

        Raises:
            TypeError: no state is given.
        """
        _, critic_state = self._split(state)
        normalized = self.normalizer[self.critic_group](obs[self.critic_group])
        features, _ = self.critic_memory(normalized, critic_state)
        return self.critic(features).squeeze(-1)

    def mean_step(self, obs: dict[str, Tensor] | TensorDict, state: Tensor) -> tuple[Tensor, Tensor]:
        """The deterministic action `[N, A]` within the env's limits, and the next state.

        `state` is a whole one `[N, S]`, or the actor's share of it; so is the next, whose critic's share
        stays as it is.
        """
        actor_state, others = state.tensor_split([self.actor_state_width], -1)
        normalized = self.normalizer[self.actor_group](obs[self.actor_group])
        features, actor_state = self.actor_memory(normalized, actor_state)
        action = self.actor(features).clamp(self.action_low, self.action_high)
        return action, torch.cat((actor_state, others), -1)

    def mean_action(self, obs: dict[str, Tensor] | TensorDict) -> Tensor:
        """There is none of an observation alone.

        Raises:
            TypeError: always.
        """
        raise TypeError("a policy with a memory acts by its state too: call mean_step")

    def encode(self, normalized: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """There are no features of observations without what came before them.

        Raises:
            TypeError: always.
        """
        raise TypeError("a policy with a memory encodes sequences: call encode_sequence")

    def encode_sequence(
        self, normalized: Mapping[str, Tensor], state: Tensor, begins: Tensor, critic: bool = True
    ) -> dict[str, Tensor]:
        """Features `[T, N, F]` under the names that the loss reads; arguments as of `Memory.sequence`.

        Without `critic` those of the actor alone.
        """
        actor_state, critic_state = self._split(state)
        features = {"actor": self.actor_memory.sequence(normalized[self.actor_group], actor_state, begins)}
        if critic:
            seen = normalized[self.critic_group]
            features["critic"] = self.critic_memory.sequence(seen, critic_state, begins)
        return features

    def as_onnx(self) -> nn.Module:
        """Raw observation of the actor's group `[B, D]` and its state `[B, actor_state_width]` ->
        action within the env's limits `[B, A]` and the next state."""
        return _DeterministicStatefulPolicy(self)

    def _split(self, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if state is None:
            raise TypeError("a policy with a memory needs its state; initial_state gives the first one")
        actor_state, critic_state = state.tensor_split([self.actor_state_width], -1)
        return actor_state, critic_state


class _DeterministicStatefulPolicy(nn.Module):
    low: Tensor
    high: Tensor

    def __init__(self, policy: StatefulActorCritic) -> None:
        super().__init__()
        self.normalizer = policy.normalizer[policy.actor_group]
        self.memory = policy.actor_memory
        self.actor = policy.actor
        self.register_buffer("low", policy.action_low)
        self.register_buffer("high", policy.action_high)

    def forward(self, observation: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        features, hidden = self.memory(self.normalizer(observation), hidden)
        return self.actor(features).clamp(self.low, self.high), hidden


def restarted(state: Tensor, begins: Tensor) -> Tensor:
    """`state` `[N, S]`, zeros where `begins` `[N]` is true: an episode starts there."""
    # Not by multiplication: what a policy that went NaN leaves behind ends with its episode.
    return state.masked_fill(begins.unsqueeze(-1), 0.0)
