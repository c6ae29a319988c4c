"""Multilayer perceptrons, one for the actor and one for the critic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.models import NetworkSection
from pi_incubator.networks._actor_critic import ActorCritic, observation_groups
from pi_incubator.registry import network

ACTIVATIONS = {"tanh": nn.Tanh, "elu": nn.ELU, "relu": nn.ReLU, "silu": nn.SiLU}


@network("mlp")
def make_mlp(cfg: NetworkSection, spec: EnvSpec) -> ActorCritic:
    """Actor and critic with `cfg.hidden_sizes` each, sharing nothing."""
    actor_group, critic_group = observation_groups(spec)
    activation = ACTIVATIONS[cfg.activation]
    actor = mlp(
        [spec.obs_dims[actor_group], *cfg.hidden_sizes, spec.action_dim], activation, output_gain=0.01
    )
    critic = mlp([spec.obs_dims[critic_group], *cfg.hidden_sizes, 1], activation, output_gain=1.0)
    return ActorCritic(cfg, spec, actor, critic)


def mlp(sizes: Sequence[int], activation: type[nn.Module], output_gain: float) -> nn.Sequential:
    """Linear layers of `sizes` with orthogonal weights (Saxe et al. 2014) and zero biases.

    A small `output_gain` makes the first actions almost those of the untrained mean, which PPO is known to
    profit from (Andrychowicz et al. 2021, "What Matters In On-Policy Reinforcement Learning?").
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        last = len(layers) == 2 * (len(sizes) - 2)
        nn.init.orthogonal_(linear.weight, output_gain if last else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation()]
    return nn.Sequential(*layers)
