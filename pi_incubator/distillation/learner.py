"""The student's optimizer: it learns from labelled samples, wherever they came from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pi_incubator.algorithms._adam import Adam, clip_by_norm
from pi_incubator.config import ExperimentConfig
from pi_incubator.distillation.loss import gaussian_kl, mean_loss, unexplained
from pi_incubator.distillation.quantize import watch_ranges
from pi_incubator.distillation.samples import BEGINS, FIRST_STATE, OBSERVATION, Samples, num_rows
from pi_incubator.distillation.teacher import Labels, LastHidden
from pi_incubator.networks._actor_critic import ActorCritic
from pi_incubator.networks._stateful import StatefulActorCritic

NAMES = ("loss/distillation", "policy/kl", "loss/value", "loss/features")


class StudentLearner:
    """Minimizes the distance between a student's outputs and its teachers' labels.

    Args:
        cfg: reads the section `distillation` and the number of iterations.
        student: optimized in place; with `fake_quantize` its linear layers are replaced.
        feature_width: of the teacher's last hidden layer, for the feature term.
    """

    def __init__(self, cfg: ExperimentConfig, student: ActorCritic, feature_width: int) -> None:
        self.cfg, self.num_iterations = cfg.distillation, cfg.num_iterations
        self.student = student
        device = student.log_std.device
        self.layers = watch_ranges(student.actor) if self.cfg.fake_quantize == "int8" else []
        self._hidden = LastHidden(student.actor)
        # FitNets (Romero et al. 2015): the student's features need not be the teacher's, but tell them.
        self.feature_map = nn.Linear(self._hidden.width, feature_width).to(device)
        self.parameters = [*student.parameters(), *self.feature_map.parameters()]
        self.minibatch_size = num_rows(cfg, student, self.cfg.minibatch_size)
        self.lr = torch.tensor(self.cfg.lr, device=device)
        self.optimizer = Adam(self.parameters, self.lr)

    def begin(self, iteration: int) -> None:
        """Set what depends on how much of the run is over."""
        done = iteration / self.num_iterations
        self.lr.fill_(self.cfg.lr * (1.0 - done))
        for layer in self.layers:
            layer.rounds = done >= 1.0 - self.cfg.fake_quantize_phase

    def finish(self) -> None:
        """Leave a student that rounds, if it was to learn that, and keeps nothing for the learner."""
        for layer in self.layers:
            layer.rounds = True
        self._hidden.remove()

    def update(self, samples: Samples) -> dict[str, Tensor]:
        """`num_updates` steps on minibatches of `samples`; returns 0-dim metrics that stay on the device."""
        totals = torch.zeros(len(NAMES), device=self.lr.device)
        for _ in range(self.cfg.num_updates):
            loss, report = self._loss(samples.draw(self.minibatch_size))
            # What a term that is off would move stays where it is.
            gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            self.optimizer.step(clip_by_norm(gradients, self.cfg.max_grad_norm))
            totals += report
        metrics = dict(zip(NAMES, (totals / self.cfg.num_updates).unbind(), strict=True))
        metrics["policy/lr"] = self.lr.clone()
        metrics["policy/std"] = self.student.log_std.detach().exp().mean()
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """What a continuation needs beside the student's weights."""
        state = {f"optimizer.{key}": value for key, value in self.optimizer.state_dict().items()}
        state |= {f"feature_map.{key}": value for key, value in self.feature_map.state_dict().items()}
        return state | {f"range.{i}": self._range(i) for i in range(len(self.layers))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        self.optimizer.load_state_dict(_part(state, "optimizer."))
        self.feature_map.load_state_dict(_part(state, "feature_map."))
        for index, layer in enumerate(self.layers):
            layer.low.copy_(state[f"range.{index}"][0])
            layer.high.copy_(state[f"range.{index}"][1])

    def _range(self, index: int) -> Tensor:
        return torch.stack((self.layers[index].low, self.layers[index].high))

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of a minibatch, and the numbers of `NAMES` `[4]`."""
        student, cfg = self.student, self.cfg
        encoded, batch = encode(student, batch, critic=cfg.value_coef > 0)
        mean, std = student.distribution(encoded[student.actor_features])
        hidden = self._hidden.features
        labels = batch["mean"], batch["std"]
        loss = mean_loss(cfg.loss, *labels, mean, std)
        kl = gaussian_kl(*labels, mean.detach(), std.detach()).mean()
        value_loss = feature_loss = torch.zeros_like(kl)
        if cfg.value_coef:
            value = student.critic(encoded[student.critic_features]).squeeze(-1)
            value_loss = unexplained(batch["value"], value)
        if cfg.feature_coef:
            feature_loss = unexplained(batch["features"], self.feature_map(hidden))
        total = loss + cfg.value_coef * value_loss + cfg.feature_coef * feature_loss
        return total, torch.stack([part.detach() for part in (loss, kl, value_loss, feature_loss)])


def encode(
    student: ActorCritic, batch: dict[str, Tensor], critic: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What actor and `critic` read `[B, F]`, and the labels beside it; B counts the steps of sequences."""
    normalized = student.normalize({group: batch[OBSERVATION + group] for group in student.groups})
    if not isinstance(student, StatefulActorCritic):
        return student.encode(normalized), batch
    by_time = {group: value.transpose(0, 1).contiguous() for group, value in normalized.items()}
    encoded = student.encode_sequence(by_time, batch[FIRST_STATE], batch[BEGINS].T.contiguous(), critic)
    features = {name: value.transpose(0, 1).flatten(0, 1) for name, value in encoded.items()}
    return features, {name: batch[name].flatten(0, 1) for name in Labels._fields if name in batch}


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
