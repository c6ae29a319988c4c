"""Random network distillation (Burda et al. 2018, arXiv 1810.12894): a reward for what was seldom observed.

A predictor learns the outputs of a fixed random network. Where it is wrong, the observation is new.

Letters: T horizon, N worlds, B samples, D observation width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kernels.normalize import gather_moments, make_moments, mean_and_std, merge_moments
from pi_incubator.checkpoint import Part
from pi_incubator.distributed import Distributed
from pi_incubator.layers.mlp import mlp
from pi_incubator.layers.normalizer import ObservationNormalizer
from pi_incubator.training.adam import Adam
from pi_incubator.training.state import NamedTensors

CLIP = 5.0
"""Of normalized observations (section 2.4)."""
HIDDEN, NUM_OUTPUTS = (128, 128), 64
KEY = "novel_observation"
"""Of the normalized observations after the steps of a rollout, `[T, N, D]`."""


class Novelty:
    """The intrinsic reward, and the predictor that it comes from.

    As in the authors' code, the observation after the last step of an episode is the first of the next one.
    Unlike there, one value function learns the sum of both rewards, with ends of episodes and one discount.

    Args:
        width: D.
        num_worlds: N.
        gamma: discount of the intrinsic returns whose standard deviation rewards are divided by, per step.
        lr: learning rate of the predictor.
        device: of the training.
    """

    def __init__(self, width: int, num_worlds: int, gamma: float, lr: float, device: torch.device) -> None:
        def network(hidden: tuple[int, ...]) -> nn.Sequential:
            return mlp([width, *hidden, NUM_OUTPUTS], nn.ReLU, output_gain=1.0).to(device)

        self.normalizer = ObservationNormalizer(width, CLIP).to(device)
        self.target = network(HIDDEN).requires_grad_(False)
        # One layer more than the target, as the authors' predictor has more.
        self.predictor = network((*HIDDEN, HIDDEN[-1]))
        self.weights = list(self.predictor.parameters())
        self.optimizer = Adam(self.weights, torch.tensor(lr, device=device))
        self._gamma = gamma
        self.returns = torch.zeros(num_worlds, device=device)
        """`[N]` discounted sums of all intrinsic rewards so far; they do not end with episodes."""
        self.moments = make_moments(1, device)

    @torch.no_grad()
    def reward(self, observation: Tensor, distributed: Distributed) -> tuple[Tensor, Tensor]:
        """The intrinsic rewards `[T, N]` of a rollout, and its normalized observations `[T, N, D]`.

        `observation` `[T, N, D]` is raw, after each step. It joins the moments before it is normalized, and
        the returns join theirs before rewards are divided by their standard deviation.
        """
        self.normalizer.observe(observation)
        self.normalizer.commit(distributed.merge_moments)
        normalized = self.normalizer(observation)
        error = (self.predictor(normalized) - self.target(normalized)).square().mean(-1)  # [T, N]
        gathered = make_moments(1, error.device)
        for row in error:
            self.returns.mul_(self._gamma).add_(row)
            gather_moments(self.returns.unsqueeze(-1), gathered)
        merge_moments(self.moments, distributed.merge_moments(gathered))
        _, std = mean_and_std(self.moments)
        return error / std.to(error), normalized

    def gradients(self, minibatch: TensorDict) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients of the predictor's squared error on a minibatch, and the error `[1]`."""
        if "samples" in minibatch.keys():  # noqa: SIM118 - of a TensorDict; sequences
            observation = minibatch["samples"][KEY].flatten(0, 1)[minibatch["order"]]
        else:
            observation = minibatch[KEY]
        loss = mse_loss(self.predictor(observation), self.target(observation))
        return torch.autograd.grad(loss, self.weights), loss.detach().view(1)

    def apply(self, gradients: list[Tensor], sound: Tensor) -> None:
        """Move the predictor, if `sound` is true."""
        self.optimizer.step(gradients, sound)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """What a continuation needs, by name."""
        yield "novelty_predictor", Part(self.predictor)
        yield "novelty_target", Part(self.target)
        yield "novelty_normalizer", Part(self.normalizer)
        yield "novelty_optimizer", Part(self.optimizer)
        yield "novelty_moments", Part(NamedTensors(moments=self.moments))
        yield "novelty_returns", Part(NamedTensors(returns=self.returns), per_rank=True)
