"""Networks: encoders and heads, one file each; policies and critics are built from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pi_incubator.registry import networks

if TYPE_CHECKING:
    from envs_gpu.vec_env import EnvSpec
    from pi_incubator.config.network import NetworkSettings
    from pi_incubator.layers.network import Network


def make_network(settings: NetworkSettings, spec: EnvSpec) -> Network[Any]:
    """The network `settings.name` for the env that `spec` describes."""
    network: Network[Any] = networks.get(settings.name)(settings, spec)
    return network
