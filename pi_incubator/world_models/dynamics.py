"""A learned model of a robot's dynamics: how positions and velocities change in one control step.

Several networks (an ensemble) learn from different windows of steps; each imagined rollout follows one of them.
The inputs and the integration of positions are those of `envs_gpu.motion`. Model-based reinforcement learning
with such ensembles: Chua et al. 2018 (PETS, arXiv 1805.12114); a loss over several predicted steps: Venkatraman
et al. 2015, "Improving Multi-step Prediction of Learned Time Series Models".

Letters: M models, B samples (a multiple of M, the first B / M are the first model's), F features, A actions,
nq positions, nv velocities, n windows of T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, smooth_l1_loss

from envs_gpu.motion import Motion
from pi_incubator.layers.normalizer import ObservationNormalizer
from pi_incubator.layers.stacked import StackedLinear, StackedOutput

LIMIT = 10.0
"""Standard deviations: inputs are clipped to them, and no predicted change is larger."""


class Dynamics(nn.Module):
    """M networks from features and action to the change of the state.

    Args:
        motion: what is read of a state, and how it changes.
        num_actions: A.
        sizes: units of the hidden layers.
        num_models: M.
    """

    def __init__(self, motion: Motion, num_actions: int, sizes: Sequence[int], num_models: int) -> None:
        super().__init__()
        self.motion, self.num_models = motion, num_models
        self.inputs = ObservationNormalizer(motion.num_features, LIMIT)
        self.changes = ObservationNormalizer(2 * motion.num_velocities, LIMIT)
        widths = [motion.num_features + num_actions, *sizes]
        self.hidden = nn.ModuleList(StackedLinear(*pair, num_models) for pair in pairwise(widths))
        self.output = StackedOutput(widths[-1], 2 * motion.num_velocities, num_models)

    def forward(self, qpos: Tensor, qvel: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The state after a step.

        Args:
            qpos: `[B, nq]`.
            qvel: `[B, nv]`.
            action: `[B, A]` in (-1, 1).

        Returns:
            `[B, nq]` and `[B, nv]`.
        """
        features = self.inputs(self.motion.features(qpos, qvel))
        hidden = torch.cat((features, action), -1).unflatten(0, (self.num_models, -1))  # [M, B / M, F + A]
        for layer in self.hidden:
            hidden = silu(layer(hidden))
        change = LIMIT * (self.output(hidden) / LIMIT).tanh()
        return self.motion.advance(qpos, qvel, self.changes.inverse(change.flatten(0, 1)))

    @torch.no_grad()
    def observe(self, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], valid: Tensor) -> None:
        """Count the steps of N worlds for the scales of inputs and outputs; see `commit`.

        Args:
            before: `qpos` `[N, nq]` and `qvel` `[N, nv]`.
            after: the same after the step.
            valid: `[N]` bool, steps that count.
        """
        self.inputs.observe(self.motion.features(*before), valid)
        self.changes.observe(self.motion.change(*before, *after), valid)

    def commit(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Let what was observed on all ranks take effect."""
        self.inputs.commit(all_reduce)
        self.changes.commit(all_reduce)

    def error(self, predicted: tuple[Tensor, Tensor], actual: tuple[Tensor, Tensor]) -> Tensor:
        """How far predicted states are off `[B]`: a smooth absolute value, mean over the degrees of freedom.

        The unit of velocities is the standard deviation of their change in a step; that of positions is the
        way at such a velocity.
        """
        unit = self.changes.std[: self.motion.num_velocities]
        off = self.motion.pose.difference(predicted[0], actual[0]) / (self.motion.control_dt * unit)
        both = torch.cat((off, (predicted[1] - actual[1]) / unit), -1)
        return smooth_l1_loss(both, torch.zeros_like(both), reduction="none").mean(-1)

    def window_loss(
        self,
        before: tuple[Tensor, Tensor],
        after: tuple[Tensor, Tensor],
        action: Tensor,
        starts: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """Mean error `[]` of predictions that continue from predictions.

        Args:
            before: `qpos` `[n, T, nq]` and `qvel` `[n, T, nv]` before each step; n is a multiple of M.
            after: the same after it.
            action: `[n, T, A]` in (-1, 1).
            starts: `[n, T]` bool, where an episode starts: the prediction starts again there.
            valid: `[n, T]` bool; from a step where it is false, nothing counts until an episode starts.
        """
        qpos, qvel, counts = before[0][:, 0], before[1][:, 0], torch.ones_like(valid[:, 0])
        errors, counted = [], []
        for t in range(action.shape[1]):
            start = starts[:, t]
            qpos = torch.where(start[:, None], before[0][:, t], qpos)
            qvel = torch.where(start[:, None], before[1][:, t], qvel)
            counts = (counts | start) & valid[:, t]
            qpos, qvel = self(qpos, qvel, action[:, t])
            error = self.error((qpos, qvel), (after[0][:, t], after[1][:, t]))
            errors.append(torch.where(counts, error, 0.0))
            counted.append(counts)
        return torch.stack(errors).sum() / torch.stack(counted).sum().clamp_min(1)
