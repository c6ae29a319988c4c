"""What other libraries offer for the work of our kernels: `PEERS[kernel][name](inputs)` returns a call.

Its results are torch tensors in the order of ours, as many as it has. Letters: T steps, N worlds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

# torch.compile unrolls the loop over the steps, and a longer one compiles for minutes.
MAX_UNROLLED_STEPS = 256

Inputs = dict[str, Any]
Call = Callable[[], Any]


class NotRun(Exception):
    """A peer cannot do this; the message is the reason for the table."""


def consistent_inputs(inputs: Inputs) -> Inputs:
    """`inputs` with no truncation, and next values that are those of the following step.

    Stable-Baselines3 knows nothing else, and our kernels take the same time for it.
    """
    if not {"value", "next_value", "terminated", "done"} <= inputs.keys():
        return inputs
    next_value = inputs["next_value"].clone()
    next_value[:-1] = inputs["value"][1:]
    return inputs | {"next_value": next_value, "done": inputs["terminated"].clone()}


def stable_baselines3(inputs: Inputs) -> Call:
    """Its rollout buffer's numpy loop, and the normalization of its PPO."""
    buffers = _import("stable_baselines3.common.buffers", "pip install -e '.[peers]'")
    gymnasium = _import("gymnasium", "pip install gymnasium")
    if inputs["reward"].device.type != "cpu":
        raise NotRun("computes on the CPU")
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
    functional = _import("torchrl.objectives.value.functional", "pip install torchrl")
    tensors = {
        name: inputs[name].unsqueeze(-1) for name in ("reward", "value", "next_value", "terminated", "done")
    }

    def run() -> tuple[Tensor, Tensor]:
        advantage, target = getattr(functional, function)(
            inputs["gamma"],
            inputs["lam"],
            tensors["value"],
            tensors["next_value"],
            tensors["reward"],
            tensors["done"],
            tensors["terminated"],
            time_dim=0,
        )
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
    """`lax.scan`, or `lax.associative_scan`, over the steps, jitted with the normalization."""
    jax = _import("jax", "pip install -e '.[mjx]'")
    decay, gamma = inputs["gamma"] * inputs["lam"], inputs["gamma"]

    def recur(coefficient: Any, delta: Any) -> Any:
        if parallel:

            def compose(later: Any, earlier: Any) -> Any:
                return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

            return jax.lax.associative_scan(compose, (coefficient, delta), reverse=True)[1]

        def step(following: Any, row: Any) -> Any:
            following = row[1] + row[0] * following
            return following, following

        return jax.lax.scan(step, jax.numpy.zeros_like(delta[0]), (coefficient, delta), reverse=True)[1]

    @jax.jit
    def run(reward: Any, value: Any, next_value: Any, terminated: Any, done: Any) -> Any:
        delta = reward + gamma * jax.numpy.where(terminated, 0.0, next_value) - value
        advantage = recur(jax.numpy.where(done, 0.0, decay), delta)
        normalized = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
        return normalized, advantage + value

    names = ("reward", "value", "next_value", "terminated", "done")
    arrays = [jax.numpy.from_dlpack(inputs[name]) for name in names]

    def call() -> list[Tensor]:
        return [torch.from_dlpack(array) for array in jax.block_until_ready(run(*arrays))]

    return call


def torchrl_returns(inputs: Inputs, function: str) -> Call:
    """Its TD(lambda) estimators."""
    functional = _import("torchrl.objectives.value.functional", "pip install torchrl")
    tensors = [inputs[name].unsqueeze(-1) for name in ("next_value", "reward", "done", "terminated")]
    return partial(getattr(functional, function), inputs["gamma"], inputs["lam"], *tensors, time_dim=0)


def eager_normalize(inputs: Inputs) -> Call:
    """What most implementations of PPO write."""
    return partial(_normalize, inputs["advantage"])


def _normalize(advantage: Tensor) -> Tensor:
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def _import(module: str, fix: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise NotRun(f"{module.partition('.')[0]} is not installed; {fix}") from None


PEERS: dict[str, dict[str, Callable[[Inputs], Call]]] = {
    "gae": {
        "stable-baselines3": stable_baselines3,
        "torchrl": partial(torchrl_gae, function="generalized_advantage_estimate"),
        "torchrl, vectorized": partial(torchrl_gae, function="vec_generalized_advantage_estimate"),
        "torch.compile": compiled_gae,
        "jax scan": partial(jax_gae, parallel=False),
        "jax associative_scan": partial(jax_gae, parallel=True),
    },
    "normalize": {"torch": eager_normalize},
    "td_lambda": {
        "torchrl": partial(torchrl_returns, function="td_lambda_return_estimate"),
        "torchrl, vectorized": partial(torchrl_returns, function="vec_td_lambda_return_estimate"),
    },
}
