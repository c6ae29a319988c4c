"""Networks: an encoder and heads behind `ActorCritic`, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pi_incubator.registry import networks

if TYPE_CHECKING:
    from envs_gpu.vec_env import EnvSpec
    from pi_incubator.config.models import NetworkSection
    from pi_incubator.networks._actor_critic import ActorCritic


def make_network(cfg: NetworkSection, spec: EnvSpec) -> ActorCritic:
    """The network `cfg.name` for this env, on the env's device."""
    return networks.get(cfg.name)(cfg, spec).to(spec.device)
