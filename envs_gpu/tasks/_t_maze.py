"""A ball that rolls down a corridor to a junction, where one of two arms is the right one.

The memory task of Bakker 2001, "Reinforcement Learning with Long Short-Term Memory", with continuous actions.
The floor is tilted, so the ball reaches the junction after the same time whatever the policy does, and the
policy pushes it sideways alone. Neither its sideways position nor its velocity is observed: a policy without
a memory could otherwise write the cue into the ball's motion, and read it at the junction.

Letters: N worlds.
"""

from __future__ import annotations

from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks.base import Episode, Outcome, Task
from envs_gpu.terms.stage import add_stage

CORRIDOR_M = 0.62
"""From the start to the end wall, on which the ball rests at the junction."""
RADIUS_M = 0.05
SLACK_M = 0.01
"""Between the ball and each wall of the corridor."""
OPENING_M = 0.12
"""From the last corner of a wall to where the ball rests."""
BLOCK_M = 0.3
"""Width of the blocks on both sides of the corridor."""
MASS_KG, TILT_M_S2, DAMPING_N_S_M, PUSH_N = 1.0, 5.0, 10.0, 10.0
"""The ball rolls at 0.5 m/s, which it has after 0.1 s, and is pushed sideways at up to 1 m/s."""


class TMaze(Task):
    """Observation `policy` `[N, 2]`: the cue (-1 left, 1 right, 0 where it is not shown) and the way so far.

    The reward `success` is 1 where the ball went into the arm of the cue, and its mean is the share of
    successes. The other arm costs as much: where it cost nothing, a policy that always takes the same arm
    would gain by being quick, and would stop exploring before it uses the cue.
    """

    parameters = (
        Parameter("arm_m", 0.2, "m", "so far into an arm, the episode ends", low=1e-3),
        Parameter("wrong_arm_cost", 1.0, "1", "cost of the arm that the cue does not say", low=0.0),
    )
    substeps = 2
    max_episode_steps = 150
    shows_cue_always: ClassVar[bool]
    """Whether the cue is observed at all steps, not at the first one alone."""

    def scene(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec()
        spec.modelname = "t_maze"
        spec.option.timestep = 0.01
        spec.option.gravity = (TILT_M_S2, 0, -9.81)
        world = spec.worldbody
        add_stage(spec, floor_z_m=-RADIUS_M)
        world.add_camera(name="above", pos=(0.35, 0, 1.6), xyaxes=(0, -1, 0, 1, 0, 0))
        for side, name in ((-1, "left_wall"), (1, "right_wall")):
            _add_wall(world, name, side)
        ball = world.add_body(name="ball")
        slide = mujoco.mjtJoint.mjJNT_SLIDE
        limits = {"limited": True, "range": (-0.1, CORRIDOR_M)}
        ball.add_joint(name="forward", type=slide, axis=(1, 0, 0), damping=DAMPING_N_S_M, **limits)
        ball.add_joint(name="sideways", type=slide, axis=(0, -1, 0), damping=DAMPING_N_S_M)
        sphere = mujoco.mjtGeom.mjGEOM_SPHERE
        ball.add_geom(
            name="ball",
            type=sphere,
            size=(RADIUS_M, 0, 0),
            mass=MASS_KG,
            condim=1,  # without friction, so that pushing at a wall does not slow the ball down
            rgba=(0.8, 0.5, 0.2, 1),
        )
        motor = spec.add_actuator(name="push", target="sideways", trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.set_to_motor()
        motor.gear[0] = PUSH_N
        motor.ctrllimited, motor.ctrlrange = True, (-1, 1)
        return spec

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        forward = episode.random.uniform("start_position", 1, 0.0, 0.02)
        qpos = torch.cat((forward, torch.zeros_like(forward)), -1)
        return qpos, torch.zeros_like(qpos)

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        return {"cue": (episode.random.uniform("cue", 1) < 0.5) * 2.0 - 1.0}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return {"cue": episode.memory["cue"].clone()}

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        terms = (
            ObservationTerm("cue", 1, self._shown_cue, low=-1.1, high=1.1, noise=0.1),
            ObservationTerm("forward_position", 1, lambda state, _: state.qpos[:, :1], "m"),
        )
        return {"policy": terms}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        sideways = state.qpos[:, 1]
        ended = sideways.abs() > episode.parameters["arm_m"]
        is_right = sideways * episode.memory["cue"][:, 0] > 0
        success, failure = ((ended & choice).to(sideways.dtype) for choice in (is_right, ~is_right))
        reward = {"success": success, "wrong_arm": -episode.parameters["wrong_arm_cost"] * failure}
        return Outcome(reward, ended, {})

    def _shown_cue(self, state: PhysicsState, episode: Episode) -> Tensor:
        cue = episode.memory["cue"]
        return cue if self.shows_cue_always else torch.where(episode.step[:, None] == 0, cue, 0.0)


def _add_wall(world: mujoco.MjsBody, name: str, side: int) -> None:
    """Add the block beside the corridor, from behind the start to the opening of its arm."""
    first, last = -0.2, CORRIDOR_M - OPENING_M
    world.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=((first + last) / 2, -side * (RADIUS_M + SLACK_M + BLOCK_M / 2), 0),
        size=((last - first) / 2, BLOCK_M / 2, RADIUS_M),
        condim=1,
        rgba=(0.5, 0.5, 0.6, 1),
    )
