"""DreamerV3: a world model learned from replay, and a policy that learns in its imagination.

Hafner et al. 2023, "Mastering Diverse Domains through World Models", arXiv 2301.04104.

Letters: T steps of a window, n windows, H imagined steps, B imagined rollouts, A actions, C categorical
variables, S width of h, F features, Z bins.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from envs_gpu.vec_env import EnvSpec, VecEnv
from kernels.lambda_return import lambda_return
from kernels.td_lambda import td_lambda
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.dreamer import DreamerSettings
from pi_incubator.data.replay.replay import OBS
from pi_incubator.data.replay.sequences import INDEX, STARTS, STATE, Windows
from pi_incubator.distributed import Distributed
from pi_incubator.layers.categorical import divergence
from pi_incubator.layers.two_hot import SymexpTwoHot
from pi_incubator.layers.world_model import WorldModelNetwork
from pi_incubator.networks import make_network
from pi_incubator.policies.latent import LatentPolicy
from pi_incubator.policies.normal import entropy_of, log_prob_of
from pi_incubator.registry import algorithm
from pi_incubator.training.compiled import compiled_piece
from pi_incubator.training.laprop import LaProp, clip_by_weights
from pi_incubator.training.latent_rollout import ReturnScale, imagine, make_latent_step, percentiles
from pi_incubator.training.off_policy import OffPolicy
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step
from pi_incubator.training.targets import follow

EPS = 1e-20
"""`eps` of the optimizer."""


class Recorded(NamedTuple):
    """The model's features of the steps of a minibatch."""

    features: Tensor
    """`[T, n, F]`."""
    arrived: Tensor
    """`[T, n, F]` after each step."""
    goes_on: Tensor
    """`[T, n]` bool, whether the next step of the window belongs to the same episode."""


@algorithm("dreamer")
class Dreamer(OffPolicy[DreamerSettings]):
    """World model, policy and critic take their optimizer steps together."""

    policy: LatentPolicy
    network: WorldModelNetwork
    report_names = (
        *("loss/observation", "loss/reward", "loss/continue", "loss/dynamics", "loss/representation"),
        *("loss/actor", "loss/critic", "loss/replay_critic", "policy/entropy", "policy/imagined_return"),
    )

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        settings, device = self.settings, env.device
        self.two_hot = SymexpTwoHot(settings.num_bins, settings.largest_symlog).to(device)
        self.predictions = self.network.predictions(settings.num_bins).to(device)
        num_features = self.policy.encoder.num_features
        self.critic = self.network.head(num_features, settings.num_bins, output_gain=0.0).to(device)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_scale = ReturnScale(device)
        modules = (self.policy, self.predictions, self.critic)
        self.weights = [weight for module in modules for weight in module.parameters()]
        self.optimizer = LaProp(self.weights, torch.tensor(settings.lr, device=device), eps=EPS)
        num_windows = settings.batch_size // settings.sequence_length
        self.states = torch.zeros(
            num_windows, settings.sequence_length, self.policy.state_width, device=device
        )
        """h `[n, T, S]` before the steps of the last minibatch, with the weights before its update."""
        # What is called in a loop is compiled, not the whole step: it would unroll the loops.
        compile_piece = compiled_piece if compute.compiled else lambda function: function
        self.observe_step = compile_piece(self.policy.encoder.observe_step)
        self.latent_step = compile_piece(make_latent_step(self.policy, self.predictions.prior))
        phase = Phase(self._gradients, self._apply)
        self._step = make_step([phase], distributed, replace(compute, compiled=False), self.skipped)

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> LatentPolicy:
        network = make_network(cfg.network, spec)
        assert isinstance(network, WorldModelNetwork)
        return LatentPolicy(cfg.network, network, spec).to(spec.device)

    def step(self, minibatch: TensorDict) -> Tensor:
        report = self._step(minibatch)
        cast(Windows, self.replay).renew_states(minibatch[INDEX], self.states)
        return report

    def minibatch(self, size: int) -> TensorDict:
        """Windows, with the random numbers of an update: `model_uniform` `[n, 2, T, C]`, and for imagination
        `noise` `[n, H, T', A]` and `uniform` `[n, H, T', C]`, where T' steps of each window are starts."""
        settings, minibatch = self.settings, self.replay.sample(size)
        num_windows, num_steps = minibatch["reward"].shape
        num_starts = -(-num_steps // settings.start_every)
        num_latents, of_imagination = (
            self.policy.encoder.latents[0],
            (settings.imagined_steps, num_windows, num_starts),
        )
        device = self.env.device
        noise = torch.empty(*of_imagination, self.env.spec.action_dim, device=device)
        uniform = torch.empty(*of_imagination, num_latents, device=device)
        model_uniform = torch.empty(2, num_windows, num_steps, num_latents, device=device)
        self.learning_noise.normal_(noise)
        self.learning_noise.uniform_(uniform)
        self.learning_noise.uniform_(model_uniform)
        for name, numbers in (("noise", noise), ("uniform", uniform), ("model_uniform", model_uniform)):
            minibatch[name] = numbers.transpose(0, 1)
        return minibatch

    def parts(self) -> dict[str, Part]:
        critics = NamedTensors(
            **{f"critic.{name}": value for name, value in self.critic.state_dict().items()},
            **{f"slow.{name}": value for name, value in self.slow_critic.state_dict().items()},
        )
        return super().parts() | {
            "predictions": Part(self.predictions, is_learned=True),
            "critics": Part(critics, is_learned=True),
            "return_scale": Part(self.return_scale),
            "optimizer": Part(self.optimizer),
        }

    def _gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients of all weights, then the percentiles of the imagined returns."""
        settings = self.settings
        recorded, model_loss, of_model = self._learn_model(minibatch)
        starts = recorded.features.detach()[:: settings.start_every].transpose(0, 1).flatten(0, 1)  # [B, F]
        behaviour_loss, limits, of_behaviour = self._learn_behaviour(minibatch, starts)
        replay_loss = self._replay_critic_loss(minibatch, recorded)
        loss = model_loss + behaviour_loss + settings.replay_value_coef * replay_loss
        report = torch.stack((*of_model, *of_behaviour[:2], replay_loss, *of_behaviour[2:]))
        return (*torch.autograd.grad(loss, self.weights), limits), report.detach()

    def _apply(self, gradients: list[Tensor], sound: Tensor) -> None:
        *gradients, limits = gradients
        self.return_scale.follow(limits, sound)
        self.optimizer.step(
            clip_by_weights(gradients, self.weights, self.settings.max_relative_gradient), sound
        )
        follow(self.slow_critic.parameters(), self.critic.parameters(), self.settings.tau, sound)

    def _learn_model(self, minibatch: TensorDict) -> tuple[Recorded, Tensor, list[Tensor]]:
        """The model's loss (eq. 4 and 5) and its five terms."""
        settings, policy, predictions = self.settings, self.policy, self.predictions
        (group,) = policy.groups
        observation = policy.normalizer[group](minibatch[OBS + group]).transpose(0, 1)
        action = policy.to_unit(minibatch["action"]).transpose(0, 1)
        starts, uniform = minibatch[STARTS].transpose(0, 1), minibatch["model_uniform"].permute(1, 2, 0, 3)
        features, logits, following = policy.encoder.observe(
            observation,
            action,
            minibatch[STATE].to(action.dtype),
            starts,
            uniform[0],
            step=self.observe_step,
        )
        states = features[..., : policy.state_width]
        self.states.copy_(states.detach().transpose(0, 1))
        prior = predictions.prior(states)
        dynamics = divergence(logits.detach(), prior).clamp_min(settings.free_nats).mean()
        representation = divergence(logits, prior.detach()).clamp_min(settings.free_nats).mean()
        target = self.network.decoder_target(observation)
        error = (predictions.observation(features.flatten(0, 1)) - target.flatten(0, 1)).square()
        recorded = self._arrive(features, following, starts, uniform[1])
        valid = minibatch["valid"].T
        reward = self.two_hot.loss(predictions.reward(recorded.arrived), minibatch["reward"].T)
        goes_on = binary_cross_entropy_with_logits(
            predictions.goes_on(recorded.arrived).squeeze(-1),
            (~minibatch["terminated"].T).to(action.dtype),
            reduction="none",
        )
        prediction_losses = [
            error.flatten(1).sum(-1).mean(),
            (valid * reward).mean(),
            (valid * goes_on).mean(),
        ]
        loss = sum(prediction_losses) + settings.dynamics_coef * dynamics
        loss = loss + settings.representation_coef * representation
        return recorded, loss, [*prediction_losses, dynamics, representation]

    def _arrive(self, features: Tensor, following: Tensor, starts: Tensor, uniform: Tensor) -> Recorded:
        """The features after each step.

        They are those of the next step of the window, if it belongs to the same episode. Elsewhere z is
        sampled from the prior, which saves a pass of the encoder over last observations.
        """
        guessed = self.predictions.prior.features(following, uniform)  # [T, n, F]
        latent = guessed[..., self.policy.state_width :].detach()
        guessed = torch.cat((following, latent), -1)
        goes_on = torch.cat((~starts[1:], torch.zeros_like(starts[:1])))
        later = torch.cat((features[1:], guessed[-1:]))
        return Recorded(features, torch.where(goes_on.unsqueeze(-1), later, guessed), goes_on)

    def _learn_behaviour(
        self, minibatch: TensorDict, starts: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The losses of policy and critic (eq. 10 and 11) on rollouts that begin with `starts` `[B, F]`, the
        percentiles of returns, and metrics."""
        settings, two_hot = self.settings, self.two_hot
        noise, uniform = (minibatch[name].transpose(0, 1).flatten(1, 2) for name in ("noise", "uniform"))
        imagined = imagine(self.latent_step, starts, noise, uniform)
        before, after = imagined.features[:-1], imagined.features[1:]
        logits = self.critic(before)  # [H, B, Z]
        with torch.no_grad():
            reward = two_hot.value(self.predictions.reward(after))
            discount = settings.gamma * self.predictions.goes_on(after).squeeze(-1).sigmoid()
            value, last_value = two_hot.value(logits), two_hot.value(self.critic(after[-1:]))
            following = torch.cat((value[1:], last_value))
            returns = lambda_return(reward, following, discount, settings.td_lambda)  # [H, B]
            slow = two_hot.value(self.slow_critic(before))
            # The discounted probability that the episode reaches each step.
            weight = torch.cat((torch.ones_like(discount[:1]), discount[:-1])).cumprod(0)
            advantage = (returns - value) / self.return_scale.scale()
        mean, std = self.policy.unit_moments(before)
        log_prob, entropy = log_prob_of(imagined.action, mean, std), entropy_of(std)
        actor_loss = -(weight * (advantage * log_prob + settings.entropy_coef * entropy)).mean()
        code = two_hot.encode(returns) + two_hot.encode(slow)
        critic_loss = -(weight * (code * logits.log_softmax(-1)).sum(-1)).mean()
        limits = percentiles(returns, len(self.shards))
        metrics = (actor_loss, critic_loss, entropy.mean(), returns.mean())
        return actor_loss + critic_loss, limits, metrics

    def _replay_critic_loss(self, minibatch: TensorDict, recorded: Recorded) -> Tensor:
        """The critic's loss on lambda returns of recorded rewards; it also shapes the model's features."""
        two_hot, settings = self.two_hot, self.settings
        logits = self.critic(recorded.features)  # [T, n, Z]
        with torch.no_grad():
            value, valid = two_hot.value(self.critic(recorded.arrived)), minibatch["valid"].T
            # The return of a broken step is the value of its state, so that steps before it are bootstrapped.
            reward = torch.where(valid, minibatch["reward"].T.to(value.dtype), two_hot.value(logits))
            terminated = minibatch["terminated"].T
            returns = td_lambda(
                reward, value, terminated, ~recorded.goes_on, settings.gamma, settings.td_lambda
            )
        return (valid * two_hot.loss(logits, returns)).mean()
