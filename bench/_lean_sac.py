"""SAC in as little torch as it takes, with the settings of CleanRL's `sac_continuous_action`.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications"; Huang et al. 2022, "CleanRL:
High-quality Single-file Implementations of Deep Reinforcement Learning Algorithms".
Letters: N envs, L steps of each env in the buffer, B samples of a minibatch, D observation width, A actions.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench._loops import RECENT_EPISODES

MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0


@dataclass(frozen=True)
class LeanSettings:
    """CleanRL's defaults; `num_updates` is what one round of `horizon` steps of every env is followed by."""

    horizon: int = 1
    num_updates: int = 1
    batch_size: int = 256
    buffer_size: int = 1_000_000
    learning_starts: int = 5_000
    gamma: float = 0.99
    tau: float = 0.005
    lr_actor: float = 3e-4
    lr_critic: float = 1e-3
    actor_every: int = 2
    hidden_sizes: tuple[int, ...] = (256, 256)


class Minibatch(NamedTuple):
    """`[B, ...]` of the buffer."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor


class Buffer:
    """The newest steps, in NumPy as CleanRL has them."""

    def __init__(self, length: int, num_envs: int, num_obs: int, num_actions: int, seed: int) -> None:
        self.columns = {
            "obs": np.zeros((length, num_envs, num_obs), np.float32),
            "action": np.zeros((length, num_envs, num_actions), np.float32),
            "reward": np.zeros((length, num_envs), np.float32),
            "next_obs": np.zeros((length, num_envs, num_obs), np.float32),
            "terminated": np.zeros((length, num_envs), np.float32),
        }
        self.length, self.num_envs, self.count = length, num_envs, 0
        self.random = np.random.default_rng(seed)

    def add(self, **step: np.ndarray) -> None:
        """Store a step of every env."""
        for name, column in self.columns.items():
            column[self.count % self.length] = step[name]
        self.count += 1

    def sample(self, size: int) -> Minibatch:
        """Uniformly, with replacement."""
        rows = self.random.integers(min(self.count, self.length), size=size)
        envs = self.random.integers(self.num_envs, size=size)
        return Minibatch(**{name: torch.from_numpy(x[rows, envs]) for name, x in self.columns.items()})


class Actor(nn.Module):
    """Observation `[B, D]` -> action `[B, A]` in the env's units, and its log-probability `[B]`."""

    def __init__(self, num_obs: int, low: np.ndarray, high: np.ndarray, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = _mlp(num_obs, 2 * len(low), widths)
        self.scale = torch.from_numpy((high - low) / 2.0).float()
        self.center = torch.from_numpy((high + low) / 2.0).float()

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.layers(obs).chunk(2, -1)
        log_std = MIN_LOG_STD + 0.5 * (MAX_LOG_STD - MIN_LOG_STD) * (raw.tanh() + 1.0)
        normal = torch.distributions.Normal(mean, log_std.exp())
        sample = normal.rsample()
        unit = sample.tanh()
        log_prob = normal.log_prob(sample) - torch.log(self.scale * (1.0 - unit.square()) + 1e-6)
        return unit * self.scale + self.center, log_prob.sum(-1)


class LeanSAC:
    """Two critics, a squashed Gaussian policy and a tuned temperature, and what they learn from.

    Args:
        env: Gymnasium's vector env that resets an env within the step that ends its episode (SAME_STEP).
        num_envs: N.
        settings: the hyperparameters.
        seed: of what is sampled from the buffer; actions are sampled by torch.
    """

    def __init__(self, env: Any, num_envs: int, settings: LeanSettings, seed: int = 0) -> None:
        self.env, self.num_envs, self.settings = env, num_envs, settings
        space = env.single_action_space
        num_obs, num_actions = env.single_observation_space.shape[0], len(space.low)
        self.actor = Actor(num_obs, space.low, space.high, settings.hidden_sizes)
        sizes = (num_obs + num_actions, 1, settings.hidden_sizes)
        self.critics = nn.ModuleList(_mlp(*sizes) for _ in range(2))
        self.targets = deepcopy(self.critics)
        self.log_temperature = torch.zeros(1, requires_grad=True)
        self.target_entropy = -float(num_actions)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), settings.lr_actor)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), settings.lr_critic)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], settings.lr_critic)
        self.buffer = Buffer(max(1, settings.buffer_size // num_envs), num_envs, num_obs, num_actions, seed)
        self.obs = env.reset()[0]
        self.env_steps = self.num_updates = 0
        self.running = np.zeros(num_envs)
        self.returns: deque[float] = deque(maxlen=RECENT_EPISODES)

    @torch.no_grad()
    def collect(self) -> None:
        """Store some steps of every env."""
        for _ in range(self.settings.horizon):
            if self.env_steps < self.settings.learning_starts:
                action = self.env.action_space.sample()
            else:
                action = self.actor(torch.from_numpy(self.obs).float())[0].numpy()
            next_obs, reward, terminated, truncated, about = self.env.step(action)
            last_obs, done = next_obs.copy(), terminated | truncated
            for i in np.flatnonzero(done):
                last_obs[i] = about["final_obs"][i]
            self.buffer.add(
                obs=self.obs, action=action, reward=reward, next_obs=last_obs, terminated=terminated
            )
            self.running += reward
            self.returns.extend(self.running[done])
            self.running[done] = 0.0
            self.obs = next_obs
            self.env_steps += self.num_envs

    def update(self) -> None:
        """Learn, once enough steps of random actions are there."""
        if self.env_steps <= self.settings.learning_starts:
            return
        for _ in range(self.settings.num_updates):
            minibatch = self.buffer.sample(self.settings.batch_size)
            self._move_critics(minibatch)
            if self.num_updates % self.settings.actor_every == 0:
                for _ in range(self.settings.actor_every):  # as many steps as the critics take
                    self._move_actor(minibatch.obs)
            with torch.no_grad():
                pairs = zip(self.targets.parameters(), self.critics.parameters(), strict=True)
                for target, weight in pairs:
                    target.lerp_(weight, self.settings.tau)
            self.num_updates += 1

    def _move_critics(self, minibatch: Minibatch) -> None:
        with torch.no_grad():
            action, log_prob = self.actor(minibatch.next_obs)
            value = _least(self.targets, minibatch.next_obs, action)
            value = value - self.log_temperature.exp() * log_prob
            goal = minibatch.reward + self.settings.gamma * (1.0 - minibatch.terminated) * value
        pair = torch.cat((minibatch.obs, minibatch.action), -1)
        first, second = ((critic(pair).squeeze(-1) - goal).square().mean() for critic in self.critics)
        loss = first + second
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()

    def _move_actor(self, obs: Tensor) -> None:
        action, log_prob = self.actor(obs)
        temperature = self.log_temperature.exp().detach()
        loss = (temperature * log_prob - _least(self.critics, obs, action)).mean()
        self.actor_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()
        with torch.no_grad():
            _, log_prob = self.actor(obs)
        temperature_loss = -(self.log_temperature.exp() * (log_prob + self.target_entropy)).mean()
        self.temperature_optimizer.zero_grad()
        temperature_loss.backward()
        self.temperature_optimizer.step()


def _least(critics: nn.ModuleList, obs: Tensor, action: Tensor) -> Tensor:
    """The smaller of the two values `[B]`."""
    first, second = (critic(torch.cat((obs, action), -1)).squeeze(-1) for critic in critics)
    return torch.min(first, second)


def _mlp(num_inputs: int, num_outputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(num_inputs, width), nn.ReLU()]
        num_inputs = width
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_outputs))
