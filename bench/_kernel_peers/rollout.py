"""Peers for what is computed over a rollout: advantages and returns. Letters: T steps, N worlds."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench._kernel_peers.common import Call, Inputs, Make, NotRun, import_jax, import_peer, jitted, need_cpu

# torch.compile unrolls the loop over the steps, and a longer one compiles for minutes.
MAX_UNROLLED_STEPS = 256


def stable_baselines3(inputs: Inputs) -> Call:
    """Its rollout buffer's numpy loop, and the normalization of its PPO."""
    buffers = import_peer("stable_baselines3.common.buffers", "pip install -e '.[peers]'")
    gymnasium = import_peer("gymnasium", "pip install gymnasium")
    need_cpu(inputs["reward"])
    num_steps, num_worlds = inputs["reward"].shape
    space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    buffer = buffers.RolloutBuffer(
        num_steps, space, space, gamma=inputs["gamma"], gae_lambda=inputs["lam"], n_envs=num_worlds
    )
    buffer.rewards, buffer.values = inputs["reward"].numpy(), inputs["value"].numpy()
    done = inputs["done"].numpy()
    buffer.episode_starts = np.concatenate((np.zeros((1, num_worlds), np.float32), done[:-1])).astype(
        np.float32
    )
    last_value, last_done = inputs["next_value"][-1], done[-1]

    def run() -> tuple[Tensor, Tensor]:
        buffer.compute_returns_and_advantage(last_value, last_done)
        advantage = buffer.advantages
        normalized = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
        return torch.from_numpy(normalized), torch.from_numpy(buffer.returns)

    return run


def torchrl_gae(inputs: Inputs, function: str) -> Call:
    """One of its two estimators, time in the dimension it wants."""
    estimate = _torchrl(function)
    names = ("value", "next_value", "reward", "done", "terminated")
    tensors = [inputs[name].unsqueeze(-1) for name in names]

    def run() -> tuple[Tensor, Tensor]:
        advantage, target = estimate(inputs["gamma"], inputs["lam"], *tensors, time_dim=0)
        return _normalize(advantage), target

    return run


def compiled_gae(inputs: Inputs) -> Call:
    """torch.compile of the plain loop."""
    from kernels.gae.reference import gae

    if (num_steps := len(inputs["reward"])) > MAX_UNROLLED_STEPS:
        raise NotRun(f"would compile {num_steps} unrolled steps")
    options = {"normalize": True, "mask": None, "eps": 1e-8}
    return partial(torch.compile(gae, dynamic=False), **inputs, **options)


def jax_gae(inputs: Inputs, parallel: bool) -> Call:
    """With the normalization."""
    jnp, recur = import_jax().numpy, _recurrence(parallel)
    decay, gamma = inputs["gamma"] * inputs["lam"], inputs["gamma"]

    def run(reward: Any, value: Any, next_value: Any, terminated: Any, done: Any) -> Any:
        delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
        advantage = recur(jnp.where(done, 0.0, decay), delta)
        normalized = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
        return normalized, advantage + value

    return jitted(run, inputs, ("reward", "value", "next_value", "terminated", "done"))


def jax_vtrace(inputs: Inputs, parallel: bool) -> Call:
    """Advantage and target, with both weights clipped at 1."""
    jnp, recur, gamma = import_jax().numpy, _recurrence(parallel), inputs["gamma"]

    def run(reward: Any, log_ratio: Any, value: Any, next_value: Any, terminated: Any, done: Any) -> Any:
        cut = done.at[-1].set(True)
        weight, discount = jnp.minimum(1.0, jnp.exp(log_ratio)), gamma * ~terminated
        delta = weight * (reward + discount * next_value - value)
        target = value + recur(jnp.where(cut, 0.0, discount * weight), delta)
        follows = jnp.where(cut, next_value, jnp.roll(target, -1, 0))
        return weight * (reward + discount * follows - value), target

    names = ("reward", "log_ratio", "value", "next_value", "terminated", "done")
    return jitted(run, inputs, names)


def jax_returns(inputs: Inputs, parallel: bool) -> Call:
    """Discounted, or of TD(lambda), where `lam` is given."""
    recur, gamma, lam = _recurrence(parallel), inputs["gamma"], inputs.get("lam", 1.0)

    def run(reward: Any, next_value: Any, terminated: Any, done: Any) -> Any:
        follows = lam * ~done.at[-1].set(True)
        discount = gamma * ~terminated
        return (recur(discount * follows, reward + discount * (1.0 - follows) * next_value),)

    return jitted(run, inputs, ("reward", "next_value", "terminated", "done"))


def jax_lambda_return(inputs: Inputs, parallel: bool) -> Call:
    """Of a discount that is predicted."""
    recur, lam = _recurrence(parallel), inputs["lam"]

    def run(reward: Any, next_value: Any, discount: Any) -> Any:
        coefficient = (lam * discount).at[-1].set(0.0)
        return (recur(coefficient, reward + (discount - coefficient) * next_value),)

    return jitted(run, inputs, ("reward", "next_value", "discount"))


def _recurrence(parallel: bool) -> Any:
    """`x[t] = coefficient[t] * x[t + 1] + number[t]`, zero after the last, by one of JAX's two scans."""
    jax = import_jax()

    def compose(later: Any, earlier: Any) -> Any:
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    def step(following: Any, row: Any) -> Any:
        following = row[1] + row[0] * following
        return following, following

    def recur(coefficient: Any, number: Any) -> Any:
        if parallel:
            return jax.lax.associative_scan(compose, (coefficient, number), reverse=True)[1]
        return jax.lax.scan(step, jax.numpy.zeros_like(number[0]), (coefficient, number), reverse=True)[1]

    return recur


def torchrl_vtrace(inputs: Inputs) -> Call:
    """Its loop; it takes the two log-probabilities whose difference we take."""
    estimate = _torchrl("vtrace_advantage_estimate")
    names = ("value", "next_value", "reward", "done", "terminated")
    log_ratio, *tensors = (inputs[name].unsqueeze(-1) for name in ("log_ratio", *names))
    return partial(estimate, inputs["gamma"], log_ratio, torch.zeros_like(log_ratio), *tensors, time_dim=0)


def torchrl_reward2go(inputs: Inputs) -> Call:
    """Its convolution; the value of what was cut off is a reward to it."""
    reward2go, gamma, next_value = _torchrl("reward2go"), inputs["gamma"], inputs["next_value"]
    cut = inputs["done"].clone()
    cut[-1] = True
    bootstraps = cut & ~inputs["terminated"]

    def run() -> Tensor:
        reward = torch.where(bootstraps, inputs["reward"] + gamma * next_value, inputs["reward"])
        found: Tensor = reward2go(reward, cut, gamma)
        return found

    return run


def torchrl_returns(inputs: Inputs, function: str) -> Call:
    """Its TD(lambda) estimators."""
    tensors = [inputs[name].unsqueeze(-1) for name in ("next_value", "reward", "done", "terminated")]
    return partial(_torchrl(function), inputs["gamma"], inputs["lam"], *tensors, time_dim=0)


def _torchrl(function: str) -> Any:
    return getattr(import_peer("torchrl.objectives.value.functional", "pip install torchrl"), function)


def eager_normalize(inputs: Inputs) -> Call:
    """What most implementations of PPO write."""
    return partial(_normalize, inputs["advantage"])


def _normalize(advantage: Tensor) -> Tensor:
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def _both_scans(peer: Any) -> dict[str, Make]:
    return {
        "jax scan": partial(peer, parallel=False),
        "jax associative_scan": partial(peer, parallel=True),
    }


PEERS: dict[str, dict[str, Make]] = {
    "gae": {
        "stable-baselines3": stable_baselines3,
        "torchrl": partial(torchrl_gae, function="generalized_advantage_estimate"),
        "torchrl, vectorized": partial(torchrl_gae, function="vec_generalized_advantage_estimate"),
        "torch.compile": compiled_gae,
        **_both_scans(jax_gae),
    },
    "normalize": {"torch": eager_normalize},
    "vtrace": {"torchrl": torchrl_vtrace, **_both_scans(jax_vtrace)},
    "discounted_return": {"torchrl reward2go": torchrl_reward2go, **_both_scans(jax_returns)},
    "td_lambda": {
        "torchrl": partial(torchrl_returns, function="td_lambda_return_estimate"),
        "torchrl, vectorized": partial(torchrl_returns, function="vec_td_lambda_return_estimate"),
        **_both_scans(jax_returns),
    },
    "lambda_return": _both_scans(jax_lambda_return),
}
