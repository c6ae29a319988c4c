"""A policy over a number of discrete choices.

Letters: N worlds, B samples, K choices, F features.

An action is the number of a choice, as float32 `[..., 1]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import Categorical

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.layers.encoder import observation_of
from pi_incubator.layers.network import Network
from pi_incubator.policies.policy import PolicyStep
from pi_incubator.policies.stochastic import PolicyInputs, StochasticPolicy


class Choices(Categorical):
    """A categorical distribution of actions `[..., 1]`, as the env takes them.

    Args:
        logits: `[..., K]`, not necessarily normalized.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Of actions `[..., 1]`, `[...]`."""
        return super().log_prob(value.squeeze(-1))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return super().sample(torch.Size(sample_shape)).unsqueeze(-1).to(self.logits.dtype)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable action `[..., 1]`."""
        return most_probable(self.logits)


class CategoricalPolicy(StochasticPolicy):
    """Softmax over the outputs of the head; the deterministic action is the most probable choice.

    Args:
        settings: normalization.
        network: builds encoder and head.
        spec: the env's observation groups and number of choices.

    Raises:
        SettingError: a setting of continuous actions was set.
    """

    distribution_class, distribution_keys = Choices, ("logits",)

    def __init__(self, settings: NetworkSettings, network: Network, spec: EnvSpec) -> None:
        assert spec.num_choices is not None
        super().__init__(settings, network, spec, num_outputs=spec.num_choices)
        for key in ("init_log_std", "state_dependent_std"):
            value = getattr(settings, key)
            if value != type(settings).model_fields[key].default:
                problem = f"has no effect on the discrete actions of {spec.name}"
                raise SettingError(f"network.{key}", value, problem, "remove it")

    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> PolicyStep:
        """`noise` `[N, 1]` is standard normal; its quantile selects the choice, by inversion."""
        normalized = self.normalizer(obs)
        features, state = self.encoder(observation_of(normalized, self.groups), state)
        distribution = Choices(self.head(features))
        below = distribution.probs.cumsum(-1)[..., :-1] <= torch.special.ndtr(noise)  # [N, K - 1]
        action = below.sum(-1, keepdim=True).to(noise.dtype)
        return PolicyStep(action, distribution.log_prob(action), state, normalized, features)

    def distribution_inputs(self, features: Tensor) -> tuple[Tensor, ...]:
        return (self.head(features),)

    def kernel_inputs(self, features: Tensor, action: Tensor) -> PolicyInputs:
        return {"logits": self.head(features), "action": self.learned_action(action)}

    def random_action(self, noise: Tensor) -> Tensor:
        """Choices that are equally likely, from standard normal `noise`, both `[N, 1]`."""
        last = self.action_high[0]
        return (torch.special.ndtr(noise) * (last + 1.0)).floor().clamp(max=last)

    def learned_action(self, action: Tensor) -> Tensor:
        """Actions `[B, 1]` as losses read them: int64 `[B]`."""
        return action.squeeze(-1).long()

    def action_of(self, features: Tensor) -> Tensor:
        return most_probable(self.head(features))

    def moments_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of the choice's number."""
        probability = self.head(features).softmax(-1)
        number = torch.arange(probability.shape[-1], device=features.device, dtype=probability.dtype)
        mean = (probability * number).sum(-1, keepdim=True)
        return mean, (probability * (number - mean).square()).sum(-1, keepdim=True).sqrt()


def most_probable(logits: Tensor) -> Tensor:
    """The number of the largest entry of `[..., K]`, in its dtype `[..., 1]`; of equal ones the first."""
    return logits.argmax(-1, keepdim=True).to(logits.dtype)
