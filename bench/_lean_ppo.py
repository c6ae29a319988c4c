"""PPO in as little torch as it takes, on any pool of envs that steps NumPy arrays.

The loss is Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; the details that matter are those
of Huang et al. 2022, "The 37 Implementation Details of Proximal Policy Optimization".
Letters: N envs, T steps of a rollout, B samples of a minibatch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ACTIVATIONS = {"tanh": nn.Tanh, "elu": nn.ELU, "relu": nn.ReLU, "silu": nn.SiLU}
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class LeanSettings:
    """The hyperparameters that are usual for continuous control, eight envs given."""

    horizon: int = 256
    minibatch_size: int = 64
    num_epochs: int = 10
    lr: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_ratio: float = 0.2
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    normalize_advantage: bool = True
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    init_log_std: float = 0.0


class LeanPPO:
    """A Gaussian policy and a value function, and what they learn from.

    Args:
        env: Gymnasium's vector interface; a finished env is reset by the `step` after its last, as EnvPool
            does it. That step is no sample of an episode: its advantage is zero.
        num_envs: N.
        settings: the hyperparameters.
    """

    def __init__(self, env: Any, num_envs: int, settings: LeanSettings) -> None:
        self.env, self.settings = env, settings
        self.low, self.high = env.action_space.low, env.action_space.high
        num_obs, num_actions = env.observation_space.shape[-1], len(self.low)
        self.actor = _mlp(num_obs, num_actions, settings, last_gain=0.01)
        self.critic = _mlp(num_obs, 1, settings, last_gain=1.0)
        self.log_std = nn.Parameter(torch.full((num_actions,), settings.init_log_std))
        self.parameters = [*self.actor.parameters(), *self.critic.parameters(), self.log_std]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.lr, eps=1e-5, fused=True)
        shape = (settings.horizon, num_envs)
        self.obs = torch.zeros(*shape, num_obs)
        self.actions = torch.zeros(*shape, num_actions)
        self.log_probs, self.rewards = torch.zeros(shape), torch.zeros(shape)
        self.terminated = torch.zeros(shape, dtype=torch.bool)
        self.done = torch.zeros(shape, dtype=torch.bool)
        self.resetting = torch.zeros(shape, dtype=torch.bool)
        self.next_obs = torch.from_numpy(env.reset()[0]).float()
        self.next_resets = torch.zeros(num_envs, dtype=torch.bool)

    @torch.no_grad()
    def collect(self) -> None:
        """Fill the rollout with T steps of every env, from where they stand."""
        for t in range(self.settings.horizon):
            self.obs[t] = self.next_obs
            self.resetting[t] = self.next_resets
            mean = self.actor(self.next_obs)
            action = mean + self.log_std.exp() * torch.randn_like(mean)
            self.actions[t] = action
            self.log_probs[t] = _log_prob(action, mean, self.log_std)
            # In the dtype of the space, which is what the pool checks for.
            asked = np.clip(action.numpy().astype(self.low.dtype, copy=False), self.low, self.high)
            obs, reward, terminated, truncated, _ = self.env.step(asked)
            self.rewards[t] = torch.from_numpy(reward)
            self.terminated[t] = torch.from_numpy(terminated)
            self.done[t] = torch.from_numpy(terminated | truncated)
            self.next_obs = torch.from_numpy(obs).float()
            self.next_resets = self.done[t].clone()

    def update(self) -> None:
        """Learn from the rollout."""
        values, advantages = self._advantages()
        targets = advantages + values
        columns = (self.obs, self.actions, self.log_probs, advantages, targets)
        obs, actions, log_probs, advantages, targets = (column.flatten(0, 1) for column in columns)
        for _ in range(self.settings.num_epochs):
            for rows in torch.randperm(len(obs)).split(self.settings.minibatch_size):
                loss = self._loss(obs[rows], actions[rows], log_probs[rows], advantages[rows], targets[rows])
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
                self.optimizer.step()

    @torch.no_grad()
    def _advantages(self) -> tuple[Tensor, Tensor]:
        """Values and generalized advantages `[T, N]` (Schulman et al. 2016)."""
        decay = self.settings.gamma * self.settings.gae_lambda
        values = self.critic(self.obs).squeeze(-1)
        last = self.critic(self.next_obs).squeeze(-1)
        # The observation after a step that ended an episode is still of that episode.
        after = torch.cat([values[1:], last[None]])
        delta = self.rewards + self.settings.gamma * after * ~self.terminated - values
        delta *= ~self.resetting
        advantages = torch.zeros_like(values)
        running = torch.zeros_like(last)
        for t in reversed(range(len(values))):
            running = (delta[t] + decay * running * ~self.done[t]) * ~self.resetting[t]
            advantages[t] = running
        return values, advantages

    def _loss(
        self, obs: Tensor, actions: Tensor, old_log_probs: Tensor, advantages: Tensor, targets: Tensor
    ) -> Tensor:
        """Clipped surrogate, squared value error and entropy of a minibatch `[B]`."""
        if self.settings.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = (_log_prob(actions, self.actor(obs), self.log_std) - old_log_probs).exp()
        clipped = ratio.clamp(1.0 - self.settings.clip_ratio, 1.0 + self.settings.clip_ratio)
        surrogate = torch.min(ratio * advantages, clipped * advantages).mean()
        value_error = (self.critic(obs).squeeze(-1) - targets).square().mean()
        entropy = (self.log_std + 0.5 + HALF_LOG_2PI).sum()
        return self.settings.value_coef * value_error - surrogate - self.settings.entropy_coef * entropy


def _log_prob(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    standard = (actions - mean) * (-log_std).exp()
    return -(0.5 * standard.square() + log_std + HALF_LOG_2PI).sum(-1)


def _mlp(num_inputs: int, num_outputs: int, settings: LeanSettings, last_gain: float) -> nn.Sequential:
    """Orthogonal weights, zero biases."""
    layers: list[nn.Module] = []
    for width in settings.hidden_sizes:
        layers += [_linear(num_inputs, width, math.sqrt(2.0)), ACTIVATIONS[settings.activation]()]
        num_inputs = width
    return nn.Sequential(*layers, _linear(num_inputs, num_outputs, last_gain))


def _linear(num_inputs: int, num_outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
