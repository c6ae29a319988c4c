"""A Gaussian policy, whose standard deviation may depend on the observation.

Letters: N worlds, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrl.modules import IndependentNormal

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import LOG_STD_RANGE, NetworkSettings
from pi_incubator.layers.encoder import observation_of
from pi_incubator.layers.network import Network
from pi_incubator.policies.policy import PolicyStep
from pi_incubator.policies.stochastic import PolicyInputs, StochasticPolicy


class GaussianPolicy(StochasticPolicy):
    """Actions are sampled unbounded; the env clips them, and the deterministic action lies within the limits.

    The standard deviation is one learned number an action. With `state_dependent_std` the head gives its
    natural logarithm beside the mean, limited to `LOG_STD_RANGE`; beyond the limits it has no gradient.

    Args:
        settings: normalization and initial exploration.
        network: builds encoder and head.
        spec: the env's observation groups and action limits.
    """

    distribution_class, distribution_keys = IndependentNormal, ("loc", "scale")
    log_std: nn.Parameter | None
    """`[A]`; None where it depends on the observation."""

    def __init__(self, settings: NetworkSettings, network: Network, spec: EnvSpec) -> None:
        depends, num_actions = settings.state_dependent_std, spec.action_dim
        super().__init__(settings, network, spec, num_outputs=2 * num_actions if depends else num_actions)
        initial = torch.full((num_actions,), settings.init_log_std)
        self.log_std = None if depends else nn.Parameter(initial)
        if depends:
            last = [layer for layer in self.head.modules() if isinstance(layer, nn.Linear)][-1]
            with torch.no_grad():
                last.bias[num_actions:] = initial

    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> PolicyStep:
        normalized = self.normalizer(obs)
        features, state = self.encoder(observation_of(normalized, self.groups), state)
        mean, std = self.moments_of(features)
        action = mean + std * noise
        log_prob = torch.distributions.Normal(mean, std, validate_args=False).log_prob(action)
        return PolicyStep(action, log_prob.sum(-1), state, normalized, features)

    def moments_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self._outputs(features)
        return mean, log_std.exp().expand_as(mean)

    def distribution_inputs(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.moments_of(features)

    def kernel_inputs(self, features: Tensor, action: Tensor) -> PolicyInputs:
        mean, log_std = self._outputs(features)
        return {"mean": mean, "log_std": log_std, "action": action}

    def metrics(self) -> dict[str, Tensor]:
        return {} if self.log_std is None else {"policy/std": self.log_std.detach().exp().mean()}

    def action_of(self, features: Tensor) -> Tensor:
        return self._outputs(features)[0].clamp(self.action_low, self.action_high)

    def _outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `[..., A]`, and the logarithm of the standard deviation: `[..., A]` too, or `[A]`."""
        outputs: Tensor = self.head(features)
        if self.log_std is not None:
            return outputs, self.log_std
        mean, log_std = outputs.chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD_RANGE)
