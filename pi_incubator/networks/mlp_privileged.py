"""Perceptrons whose actor sees what no robot can measure: a teacher for `pi-distill`, not for a robot."""

from __future__ import annotations

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.models import NetworkSection
from pi_incubator.networks._actor_critic import ActorCritic, observation_groups
from pi_incubator.networks.mlp import ACTIVATIONS, mlp
from pi_incubator.registry import network


@network("mlp_privileged")
def make_mlp_privileged(cfg: NetworkSection, spec: EnvSpec) -> ActorCritic:
    """Actor and critic with `cfg.hidden_sizes` each, both on the group of the critic (Lee et al. 2020)."""
    _, group = observation_groups(spec)
    activation, width = ACTIVATIONS[cfg.activation], spec.obs_dims[group]
    actor = mlp([width, *cfg.hidden_sizes, spec.action_dim], activation, output_gain=0.01)
    critic = mlp([width, *cfg.hidden_sizes, 1], activation, output_gain=1.0)
    return ActorCritic(cfg, spec, actor, critic, groups=(group, group))
