"""Worlds of C MuJoCo that are not what a policy learned in, each in a way of its own that stays.

Domain randomization draws; this says which world is how, to measure what a policy endures.

Letters: N worlds, nu controls, K controls that are remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import mujoco
import torch
from torch import Tensor

from envs_gpu.physics.base import PhysicsOptions, nominal
from envs_gpu.physics.mujoco import MujocoPhysics

_MASSES = ("body_mass", "body_inertia", "body_subtreemass")
_FRICTION = "geom_friction"


@dataclass(frozen=True)
class Disturbance:
    """What is wrong with every world; float64 on the CPU."""

    mass: Tensor
    """`[N]` factor on the mass of all bodies, and on their inertia along with it."""
    friction: Tensor
    """`[N]` factor on the sliding friction of all geoms."""
    delay_s: Tensor
    """`[N]` from a control to its effect, rounded up to whole physics timesteps."""
    push: Tensor
    """`[N]` factor on the pushes of the randomization."""
    rest: Tensor
    """`[nu]` the control that acts until the first one arrives."""

    @staticmethod
    def none(num_worlds: int, rest: Tensor) -> Disturbance:
        """Worlds with which nothing is wrong."""
        ones = torch.ones(num_worlds, dtype=torch.float64)
        return Disturbance(ones, ones, torch.zeros_like(ones), ones, rest)


class DisturbedPhysics(MujocoPhysics):
    """C MuJoCo with a `Disturbance`; for the rest see `MujocoPhysics`."""

    def __init__(
        self,
        model: mujoco.MjModel,
        num_worlds: int,
        device: torch.device,
        options: PhysicsOptions,
        disturbance: Disturbance,
    ) -> None:
        fields = (*options.per_world, *_MASSES, _FRICTION)
        super().__init__(model, num_worlds, device, replace(options, per_world=tuple(dict.fromkeys(fields))))
        self._disturbance = disturbance
        timesteps = disturbance.delay_s / model.opt.timestep
        self.delay_steps = (timesteps - 1e-6).ceil().long()
        """`[N]` physics timesteps from a control to its effect."""
        self._sent = disturbance.rest.expand(int(self.delay_steps.max()) + 1, num_worlds, -1).clone()
        """`[K, N, nu]`, newest last."""
        self._world = torch.arange(num_worlds)
        for field in _MASSES:
            self._multiply(field, disturbance.mass)
        sliding = torch.ones(num_worlds, model.ngeom, 3, dtype=torch.float64)
        sliding[..., 0] = disturbance.friction[:, None]
        self._multiply(_FRICTION, sliding)

    def step(self, ctrl: Tensor, substeps: int) -> None:
        self._sent = torch.cat((self._sent[1:], ctrl.to(self._sent)[None]))
        switches = sorted({0, substeps, *(self.delay_steps % substeps).tolist()})
        for first, stop in pairwise(switches):
            late = (self.delay_steps - first).clamp(min=0)
            age = -(-late // substeps)  # [N] control steps, rounded up
            super().step(self._sent[-1 - age, self._world], stop - first)

    def set_state(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        self._sent[:, mask] = self._disturbance.rest.to(self._sent)
        super().set_state(mask, qpos, qvel)

    def push(self, worlds: Tensor, change: Tensor) -> None:
        super().push(worlds, change * self._disturbance.push[worlds, None])

    def _multiply(self, field: str, factor: Tensor) -> None:
        """Give every world its own multiple of the model's `field`."""
        value = torch.tensor(nominal(self.model, field))
        factor = factor.view(*factor.shape, *[1] * (value.dim() + 1 - factor.dim()))
        self.randomize(field, value * factor, self._world)
