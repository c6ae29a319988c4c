"""A value function, and a policy with it: what actor-critic algorithms collect with.

Letters: T steps, N worlds, A actions, D observation width, F features, S state width of policy and critic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.normalize import denormalize_value, make_moments
from pi_incubator.layers.encoder import Encoder, observation_of
from pi_incubator.layers.network import Network
from pi_incubator.policies.policy import ActionMoments, Policy


class ValueFunction(nn.Module):
    """An encoder of the critic's observation groups, and a head with one output.

    Args:
        network: builds encoder and head.
        policy: whose encoder it uses, if the network shares it.
        normalizes: the head learns values that are normalized by `moments`; what the critic returns is not.
    """

    moments: Tensor | None
    """`[3, 1]` of the returns so far (see `kernels.normalize.running`); None where nothing is normalized."""

    def __init__(self, network: Network, policy: Policy, normalizes: bool = False) -> None:
        super().__init__()
        self.register_buffer("moments", make_moments(1) if normalizes else None)
        self.groups = network.critic_groups
        self.shares_encoder = network.shares_encoder and self.groups == policy.groups
        self.encoder: Encoder = policy.encoder if self.shares_encoder else network.critic_encoder()
        self.head = network.head(self.encoder.num_features, 1, output_gain=1.0)

    @property
    def state_width(self) -> int:
        """Width of the state of its own; a shared encoder's state is the policy's."""
        return 0 if self.shares_encoder else self.encoder.state_width

    def forward(self, normalized: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        """Value `[N]` of normalized groups `[N, D]`, and the next state of the encoder."""
        features, state = self.encoder(observation_of(normalized, self.groups), state)
        return self.value_of(features), state

    def value_of(self, features: Tensor) -> Tensor:
        """Features `[..., F]` -> value `[...]`, in the unit of the return."""
        value = self.head(features).squeeze(-1)
        return value if self.moments is None else denormalize_value(value, self.moments)


class NoCritic(ValueFunction):
    """Of algorithms without a critic: every value is zero.

    Args:
        policy: whose encoder it shares, so that nothing is computed for it.
    """

    def __init__(self, policy: Policy) -> None:
        nn.Module.__init__(self)
        self.register_buffer("moments", None)
        self.groups, self.shares_encoder, self.encoder = policy.groups, True, policy.encoder
        self.head = nn.Identity()

    def value_of(self, features: Tensor) -> Tensor:
        return features.new_zeros(features.shape[:-1])


class Decision(NamedTuple):
    """What a policy did and its critic thought of it, for every world."""

    observation: dict[str, Tensor]
    """The groups that both read, normalized `[N, D]`."""
    action: Tensor
    """`[N, A]`."""
    log_prob: Tensor
    """`[N]`."""
    value: Tensor
    """`[N]`."""
    state: Tensor
    """`[N, S]` after the step."""


class ActorCritic(nn.Module):
    """A policy and a value function; the state `[N, S]` holds the policy's first, then the critic's.

    Args:
        policy: acts; its normalizer holds the groups of both.
        critic: values; `NoCritic` where nothing is valued.
    """

    def __init__(self, policy: Policy, critic: ValueFunction) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        self.state_width = policy.state_width + critic.state_width
        self.groups = tuple(dict.fromkeys((*policy.groups, *critic.groups)))

    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> Decision:
        """Sample actions from raw observations and value them; `noise` `[N, A]` is standard normal."""
        actor_state, critic_state = self._split(state)
        step = self.policy.act(obs, actor_state, noise)
        if self.critic.shares_encoder:
            value = self.critic.value_of(step.features)
        else:
            value, critic_state = self.critic(step.observation, critic_state)
        state = torch.cat((step.state, critic_state), -1)
        observation = {group: step.observation[group] for group in self.groups}
        return Decision(observation, step.action, step.log_prob, value, state)

    def value(self, obs: Mapping[str, Tensor], state: Tensor) -> Tensor:
        """Value `[N]` of raw observations, where the steps before left `state` `[N, S]`."""
        actor_state, critic_state = self._split(state)
        normalized = self._of_critic(obs)
        return self.critic(normalized, actor_state if self.critic.shares_encoder else critic_state)[0]

    def moments(self, obs: Mapping[str, Tensor], state: Tensor) -> ActionMoments:
        """The distribution of the action for raw observations, and the next state of both."""
        actor_state, critic_state = self._split(state)
        mean, std, actor_state = self.policy.moments(obs, actor_state)
        if self.critic.state_width:
            observation = observation_of(self._of_critic(obs), self.critic.groups)
            _, critic_state = self.critic.encoder(observation, critic_state)
        return ActionMoments(mean, std, torch.cat((actor_state, critic_state), -1))

    def initial_state(self, num_worlds: int) -> Tensor:
        """The state at the start of an episode, `[num_worlds, S]` zeros."""
        return self.policy.action_low.new_zeros(num_worlds, self.state_width)

    def encode(self, normalized: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features `[B, F]` for the policy's head and the critic's, of independent samples `[B, D]`.

        Only where S is 0: otherwise samples belong to sequences, see `sequence`.
        """
        policy, critic = self.policy, self.critic
        nothing = policy.initial_state(0)
        features, _ = policy.encoder(observation_of(normalized, policy.groups), nothing)
        if critic.shares_encoder:
            return features, features
        return features, critic.encoder(observation_of(normalized, critic.groups), nothing)[0]

    def sequence(
        self, normalized: Mapping[str, Tensor], state: Tensor, starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features `[T, N, F]` for the policy's head and the critic's; arguments as of `Encoder.sequence`."""
        actor_state, critic_state = self._split(state)
        features = self.policy.sequence(normalized, actor_state, starts)
        if self.critic.shares_encoder:
            return features, features
        observation = observation_of(normalized, self.critic.groups)
        return features, self.critic.encoder.sequence(observation, critic_state, starts)

    def _of_critic(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The critic's raw groups, normalized."""
        return {group: self.policy.normalizer[group](obs[group]) for group in self.critic.groups}

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        width = self.policy.state_width
        return state[:, :width], state[:, width:]
