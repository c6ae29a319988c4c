"""A Gaussian policy squashed by tanh into the env's action limits (Haarnoja et al. 2018, appendix C).

Letters: B samples, N worlds, A actions, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.functional import softplus

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.layers.encoder import observation_of
from pi_incubator.layers.network import Network
from pi_incubator.policies.bounded import BoundedPolicy
from pi_incubator.policies.normal import log_density
from pi_incubator.policies.policy import PolicyStep

LOG_STD_RANGE = (-5.0, 2.0)
"""Of the Gaussian before it is squashed."""


class SquashedGaussian:
    """tanh of a diagonal Gaussian, in the form that TorchRL's losses sample from.

    The noise is an argument, so that sampling is a function of its inputs.

    Args:
        loc: `[B, A]` mean before tanh.
        scale: `[B, A]` standard deviation before tanh.
        noise: `[B, A]` standard normal.
    """

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        self.loc, self.scale, self.noise = loc, scale, noise

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The action in (-1, 1) `[B, A]`, and the logarithm of its probability density `[B]`."""
        before = self.loc + self.scale * self.noise
        # log(1 - tanh(x)^2), exact where tanh saturates.
        jacobian = 2.0 * (math.log(2.0) - before - softplus(-2.0 * before))
        return before.tanh(), (log_density(self.noise, self.scale) - jacobian).sum(-1)


class SquashedGaussianPolicy(BoundedPolicy):
    """Mean and standard deviation depend on the observation; actions lie within the env's limits.

    Args:
        settings: normalization.
        network: builds encoder and head.
        spec: the env's observation groups and action limits.
        log_std_range: of the Gaussian before it is squashed, natural logarithms.

    Raises:
        SettingError: an action has no limits.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        network: Network,
        spec: EnvSpec,
        log_std_range: tuple[float, float] = LOG_STD_RANGE,
    ) -> None:
        super().__init__(settings, network, spec, num_outputs=2 * spec.action_dim)
        self.log_std_range = log_std_range

    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> PolicyStep:
        normalized = self.normalizer(obs)
        features, state = self.encoder(observation_of(normalized, self.groups), state)
        unit, log_prob = SquashedGaussian(*self.before_tanh(features), noise).rsample_and_log_prob()
        log_prob = log_prob - self.half_range.log().sum()
        return PolicyStep(self.to_env_units(unit), log_prob, state, normalized, features)

    def before_tanh(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[..., F]` -> mean and standard deviation before tanh, each `[..., A]`."""
        loc, raw = self.head(features).chunk(2, -1)
        low, high = self.log_std_range
        return loc, (low + 0.5 * (high - low) * (raw.tanh() + 1.0)).exp()

    def action_of(self, features: Tensor) -> Tensor:
        return self.to_env_units(self.before_tanh(features)[0].tanh())

    def moments_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The standard deviation is to first order: that before tanh, times the slope of tanh at the mean."""
        loc, scale = self.before_tanh(features)
        unit = loc.tanh()
        return self.to_env_units(unit), self.half_range * scale * (1.0 - unit.square()).clamp_min(1e-3)
