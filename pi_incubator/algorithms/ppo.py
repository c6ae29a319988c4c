"""Proximal policy optimization with a clipped surrogate (Schulman et al. 2017), on TorchRL's loss."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torchrl.modules import IndependentNormal
from torchrl.objectives import ClipPPOLoss

from pi_incubator.algorithms._adam import Adam, clip_by_norm
from pi_incubator.algorithms._captured import CapturedStep
from pi_incubator.algorithms._compiled import compiled_step
from pi_incubator.algorithms._learner import Learner
from pi_incubator.algorithms._minibatches import Minibatches, Samples, Sequences
from pi_incubator.algorithms.advantage import KernelGAE
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.networks._actor_critic import ActorCritic
from pi_incubator.networks._stateful import StatefulActorCritic
from pi_incubator.registry import algorithm

# Adaptive learning rate: how much to change it by, how far the KL divergence may be from the desired one
# before that, and the bounds it stays in (rsl_rl's rule, Schwarke et al. 2025).
LR_FACTOR, KL_TOLERANCE, LR_RANGE = 1.5, 2.0, (1e-5, 1e-2)
LOSSES = ("loss_objective", "loss_critic", "loss_entropy")


@algorithm("ppo")
class PPO(Learner):
    """Clipped PPO with minibatches, gradient clipping, entropy bonus and a scheduled learning rate.

    The minibatches of a policy with a memory are whole sequences of some worlds, and the gradient goes back
    through all of their steps.

    Args:
        cfg: reads the `algorithm` section and the number of iterations.
        policy: optimized in place.
        compiled: run a minibatch's step, from the loss to the new weights, as one compiled function.

    Raises:
        ConfigError: the policy has a memory, and the minibatches hold no whole sequences.
    """

    def __init__(self, cfg: ExperimentConfig, policy: ActorCritic, compiled: bool = False) -> None:
        if isinstance(policy, StatefulActorCritic):
            _check_sequences(cfg)
        self.cfg = cfg.algorithm
        self.num_iterations = cfg.num_iterations
        self.autocast = cfg.compute.autocast == "bfloat16"
        self.policy = policy
        self.loss = _make_loss(cfg, policy)
        self.parameters = list(policy.parameters())
        self.device = self.parameters[0].device
        # A tensor, so that schedules change it on the device and a captured graph sees the change.
        self.lr = torch.tensor(self.cfg.lr, device=self.device)
        self.iteration = torch.zeros((), dtype=torch.int64)
        # Of its own, so that an update may go on while actions are drawn.
        self.generator = torch.Generator(self.device).manual_seed(cfg.experiment.seed)
        self.optimizer = Adam(self.parameters, self.lr, eps=1e-5)
        self._learn = compiled_step(self._step) if compiled else self._step
        if self.device.type == "cuda":
            self._learn = CapturedStep(self._learn)

    def advantage(self, data: TensorDict) -> None:
        # In place, once a rollout: what is reported was summed by the env, unscaled.
        reward, valid = data["next", "reward"], data["valid"]
        reward.mul_(self.cfg.reward_scale)
        # A broken step is worth exactly what its state was thought to be worth. So it has no advantage, and
        # the steps that led to it are bootstrapped with that value, as if the clock had stopped there.
        reward.copy_(torch.where(valid, reward, data["state_value"]))
        self.loss.value_estimator(data)

    def update(self, data: TensorDict) -> dict[str, Tensor]:
        if self.cfg.lr_schedule == "linear":
            self.lr.fill_(self.cfg.lr * (1.0 - self.iteration.item() / self.num_iterations))
        minibatches = self._cut(data)
        totals = torch.zeros(5, device=self.device)
        num_minibatches = data.numel() // self.cfg.minibatch_size
        for _ in range(self.cfg.num_epochs):
            epoch = torch.zeros(5, device=self.device)
            for minibatch in minibatches.shuffled(self.generator):
                epoch += self._learn(minibatch)
            totals += epoch
            self._adapt_lr(epoch[3] / num_minibatches)
        self.policy.commit()
        self.iteration += 1
        means = totals / (self.cfg.num_epochs * num_minibatches)
        names = ("loss/policy", "loss/value", "policy/entropy", "policy/kl", "policy/clip_fraction")
        metrics = dict(zip(names, means.unbind(), strict=True))
        metrics["policy/lr"] = self.lr.clone()
        metrics["policy/std"] = self.policy.log_std.detach().exp().mean()
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        state = {"lr": self.lr.clone(), "iteration": self.iteration.clone()}
        state["generator"] = self.generator.get_state()
        return state | {f"optimizer.{key}": value for key, value in self.optimizer.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.lr.copy_(state["lr"])
        self.iteration.copy_(state["iteration"])
        self.generator.set_state(state["generator"].cpu())
        optimizer = {key: value for key, value in state.items() if key.startswith("optimizer.")}
        self.optimizer.load_state_dict(
            {key.removeprefix("optimizer."): value for key, value in optimizer.items()}
        )

    def _cut(self, data: TensorDict) -> Minibatches:
        keys = [*self.policy.groups, "action", "action_log_prob", "advantage", "value_target", "state_value"]
        kind = Sequences if isinstance(self.policy, StatefulActorCritic) else Samples
        return kind(data, keys, self.cfg.minibatch_size)

    def _step(self, minibatch: TensorDict) -> Tensor:
        """One optimizer step; gives `[5]`: both losses, entropy, KL divergence, clip fraction."""
        gradients, report = self._gradients(minibatch)
        self.optimizer.step(clip_by_norm(gradients, self.cfg.max_grad_norm))
        return report

    def _gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        loss, report = self._losses(minibatch)
        return torch.autograd.grad(loss, self.parameters), report

    def _losses(self, minibatch: TensorDict) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            losses = self.loss(self._encoded(minibatch))
        loss = sum(losses[name] for name in LOSSES)
        # E[r - 1 - log r] is never negative and has less variance than E[-log r] (Schulman 2020).
        kl = losses["mean_ratio"] - 1.0 + losses["kl_approx"]
        report = (
            losses["loss_objective"],
            losses["loss_critic"],
            losses["entropy"],
            kl,
            losses["clip_fraction"],
        )
        return loss, torch.stack([value.detach() for value in report])

    def _encoded(self, minibatch: TensorDict) -> TensorDict:
        """The minibatch's samples `[B]`, with the features that actor and critic read."""
        policy = self.policy
        if isinstance(policy, StatefulActorCritic):
            samples = minibatch["samples"]
            observations = {group: samples[group] for group in policy.groups}
            features = policy.encode_sequence(observations, minibatch["state"], minibatch["begins"])
            return samples.replace(features).flatten()[minibatch["order"]]
        return minibatch.replace(policy.encode({group: minibatch[group] for group in policy.groups}))

    def _adapt_lr(self, kl: Tensor) -> None:
        if self.cfg.lr_schedule != "adaptive":
            return
        too_far = kl > self.cfg.desired_kl * KL_TOLERANCE
        too_near = kl < self.cfg.desired_kl / KL_TOLERANCE
        factor = torch.where(too_far, 1.0 / LR_FACTOR, torch.where(too_near, LR_FACTOR, 1.0))
        self.lr.mul_(factor).clamp_(*LR_RANGE)


def _check_sequences(cfg: ExperimentConfig) -> None:
    """Refuse minibatches that would cut sequences into pieces.

    Raises:
        ConfigError: algorithm.minibatch_size is no multiple of algorithm.horizon.
    """
    size, horizon = cfg.algorithm.minibatch_size, cfg.algorithm.horizon
    if size % horizon:
        problem = f"network {cfg.network.name} learns from whole sequences of algorithm.horizon = {horizon}"
        fix = f"set it to {-(-size // horizon) * horizon} or another multiple of that"
        raise ConfigError("config", "algorithm.minibatch_size", size, problem=problem, fix=fix)


def _make_loss(cfg: ExperimentConfig, policy: ActorCritic) -> ClipPPOLoss:
    """The loss on features, found under the policy's names for them."""
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(_Distribution(policy), in_keys=[policy.actor_features], out_keys=["loc", "scale"]),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"],
            out_keys=["action"],
            distribution_class=IndependentNormal,
            return_log_prob=True,
        ),
    )
    critic = TensorDictModule(policy.critic, in_keys=[policy.critic_features], out_keys=["state_value"])
    settings = cfg.algorithm
    loss = ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=settings.clip_ratio,
        entropy_coeff=settings.entropy_coef,
        critic_coeff=settings.value_coef,
        loss_critic_type="l2",
        functional=False,
    )
    loss.make_value_estimator(
        KernelGAE,
        gamma=settings.gamma,
        lmbda=settings.gae_lambda,
        time_dim=0,
        normalize=settings.normalize_advantage,
        mask_key="valid",
    )
    return loss


class _Distribution(torch.nn.Module):
    """The policy's mean and standard deviation as a module, for TensorDictModule."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy.distribution(features)
