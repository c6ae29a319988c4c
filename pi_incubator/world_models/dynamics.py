"""A learned model of a robot's dynamics: how positions and velocities change in one control step.

Several networks (an ensemble) learn from different windows of steps; each imagined rollout follows one of
them. The inputs and the integration of positions are those of `envs_gpu.motion`. Model-based reinforcement
learning with such ensembles: Chua et al. 2018 (PETS, arXiv 1805.12114); a loss over several predicted steps:
Venkatraman et al. 2015, "Improving Multi-step Prediction of Learned Time Series Models".

Letters: M models, B samples (a multiple of M, the first B / M are the first model's), F features, A actions,
nq positions, nv velocities, n windows of T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, smooth_l1_loss

from envs_gpu.motion import Motion
from pi_incubator.layers.normalizer import ObservationNormalizer
from pi_incubator.layers.stacked import StackedLinear, StackedOutput

LIMIT = 10.0
"""Limit of inputs and of predicted changes, in standard deviations."""


State = tuple[Tensor, Tensor]
"""`qpos` `[B, nq]` and `qvel` `[B, nv]`."""


class Window(NamedTuple):
    """The steps of n recorded windows `[T, n, ...]`, or one step of each `[n, ...]`."""

    before: State
    """The state before each step."""
    after: State
    """The state after it."""
    action: Tensor
    """`[..., A]` in (-1, 1)."""
    start: Tensor
    """Bool, where an episode starts within a window: the prediction starts again there."""
    valid: Tensor
    """Bool; from a step where it is false, nothing counts until an episode starts."""

    def at(self, t: int) -> Window:
        """The step `t` of windows."""
        before, after = ((qpos[t], qvel[t]) for qpos, qvel in (self.before, self.after))
        return Window(before, after, self.action[t], self.start[t], self.valid[t])


WindowStep = Callable[[State, Window], tuple[State, Tensor]]
"""See `Dynamics.window_step`."""


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

    def forward(self, qpos: Tensor, qvel: Tensor, action: Tensor) -> State:
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
    def observe(self, before: State, after: State, valid: Tensor) -> None:
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

    def error(self, predicted: State, actual: State) -> Tensor:
        """How far predicted states are off `[B]`: a smooth absolute value, mean over the degrees of freedom.

        The unit of velocities is the standard deviation of their change in a step. That of positions is what
        this velocity moves them in a step.
        """
        unit = self.changes.std[: self.motion.num_velocities]
        off = self.motion.pose.difference(predicted[0], actual[0]) / (self.motion.control_dt * unit)
        both = torch.cat((off, (predicted[1] - actual[1]) / unit), -1)
        return smooth_l1_loss(both, torch.zeros_like(both), reduction="none").mean(-1)

    def window_step(self, now: State, actual: Window) -> tuple[State, Tensor]:
        """One step of each window: the predicted state, and its error `[n]`.

        Args:
            now: predicted state before the step.
            actual: of the step.
        """
        start = actual.start.unsqueeze(-1)
        qpos = torch.where(start, actual.before[0], now[0])
        qvel = torch.where(start, actual.before[1], now[1])
        predicted = self(qpos, qvel, actual.action)
        return predicted, self.error(predicted, actual.after)

    def window_loss(self, windows: Window, window_step: WindowStep) -> Tensor:
        """Mean error `[]` of predictions that continue from predictions; steps that do not count are zeros.

        Args:
            windows: `[T, n, ...]`; n is a multiple of M.
            window_step: `self.window_step`, perhaps compiled.
        """
        steps = [windows.at(t) for t in range(len(windows.action))]
        # Laid out in memory as after a step, which compiled code relies on.
        now = steps[0].before[0].contiguous(), steps[0].before[1].contiguous()
        counts = torch.ones_like(steps[0].valid)
        errors, counted = [], []
        for actual in steps:
            now, error = window_step(now, actual)
            counts = (counts | actual.start) & actual.valid
            errors.append(error)
            counted.append(counts)
        return torch.where(torch.stack(counted), torch.stack(errors), 0.0).mean()
