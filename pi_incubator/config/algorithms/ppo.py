"""Settings of proximal policy optimization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pi_incubator.config.policy_gradient import ClippedSettings
from pi_incubator.config.section import Fraction, NonNegative, Positive, cross_field_error
from pi_incubator.config.without_effect import is_default

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class PPOSettings(ClippedSettings):
    """Clipped PPO: what is collected for an iteration, and how it is learned from."""

    name: Literal["ppo"] = "ppo"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    loss: Literal["torchrl", "fused"] = "torchrl"
    """torchrl: ClipPPOLoss; fused: the same losses by our kernel, one launch forward and one backward."""
    gae_lambda: Fraction = 0.95
    """Decay of generalized advantage estimation: 0 is one-step TD, 1 is Monte Carlo."""
    value_coef: NonNegative = 0.5
    """Weight of the value loss."""
    clip_value_loss: bool = False
    """Whether the value may move clip_ratio from the old one before the value loss stops rewarding it."""
    normalize_value: bool = False
    """Whether the critic learns returns in units of their running standard deviation, from their mean."""
    normalize_advantage: bool = True
    """Whether advantages are shifted and scaled to zero mean and unit standard deviation."""
    rnd_coef: NonNegative = 0.0
    """Weight of the reward for new observations, by random network distillation; 0 gives none."""
    rnd_lr: Positive = 1e-4
    """Learning rate of the predictor whose error that reward is."""

    def check(self, cfg: ExperimentConfig) -> None:
        super().check(cfg)
        if not self.rnd_coef and not is_default(cfg, "algorithm.rnd_lr"):
            raise cross_field_error(
                field="algorithm.rnd_lr",
                value=self.rnd_lr,
                problem="has no effect with algorithm.rnd_coef = 0",
                fix="remove it, or raise algorithm.rnd_coef",
            )
        if self.rnd_coef and (cfg.network.acts_on_pixels or cfg.training.overlap):
            problem = f"network {cfg.network.name} sees pixels, and the predictor sees vectors alone"
            fix = "remove it, or name a network of vectors"
            if cfg.training.overlap:
                problem = "the predictor is read while an update in the background would change it"
                fix = "remove it, or set training.overlap to false"
            raise cross_field_error(field="algorithm.rnd_coef", value=self.rnd_coef, problem=problem, fix=fix)
