"""Run forward as a four-legged ant: Gymnasium's Ant-v5.

Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation";
the observation, reward, termination and model are those of Gymnasium 1.x's Ant-v5 with default arguments.

One difference, on purpose: Gymnasium reads torso position and contact forces as the last Runge-Kutta stage
left them, which belongs to none of the states that the agent sees. Here they belong to the state returned.
"""

from __future__ import annotations

from dataclasses import replace

import mujoco
import torch
from torch import Tensor

from envs_gpu.interface import PolicyInterface, Term
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import gymnasium_model
from envs_gpu.tasks import task
from envs_gpu.tasks.base import Episode, Outcome, Task
from envs_gpu.terms.contact import add_contact_sensor, contact_wrench

CONTACT_FORCE_RANGE = (-1.0, 1.0)
RESET_NOISE_SCALE = 0.1
NUM_BODIES = 13
CONTACTS_PER_BODY = 2  # a capsule touches the floor with its two ends, the torso's sphere once


@task("ant")
class Ant(Task):
    """Observation `policy` `[N, 105]`: qpos without x and y (13), qvel (14), cfrc_ext of 13 bodies (78)."""

    parameters = (
        Parameter("forward_weight", 1.0, "s/m", "reward for the forward velocity"),
        Parameter("healthy_reward", 1.0, "1", "reward for a healthy step", low=0.0),
        Parameter("control_cost_weight", 0.5, "1", "cost of the squared actions", low=0.0),
        Parameter("contact_cost_weight", 5e-4, "1", "cost of the squared contact wrenches", low=0.0),
        Parameter("healthy_z_min_m", 0.2, "m", "height of the torso below which the episode ends"),
        Parameter("healthy_z_max_m", 1.0, "m", "height of the torso above which the episode ends"),
    )
    substeps = 5
    max_episode_steps = 1000

    def scene(self) -> mujoco.MjSpec:
        spec = gymnasium_model("ant")
        for body in spec.worldbody.find_all("body"):
            (geom,) = body.geoms
            add_contact_sensor(spec, geom.name, "floor", CONTACTS_PER_BODY)
        spec.add_sensor(
            name="torso_com",
            type=mujoco.mjtSensor.mjSENS_SUBTREECOM,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            objname="torso",
        )
        return spec

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        self._initial_qpos = torch.tensor(model.qpos0, device=device)
        contacts = [where for name, where in self.sensor.items() if name.startswith("contact_")]
        self._contacts = slice(contacts[0].start, contacts[-1].stop)  # sensors lie one behind the other

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        return {"x_m": state.qpos[:, 0].clone()}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return self.begin(state, episode)

    def interface(self) -> PolicyInterface:
        terms = (
            Term("torso_height", 1, "m"),
            Term("torso_orientation", 4, low=-2.0, high=2.0),
            Term("joint_position", 8, "rad"),
            Term("torso_velocity", 3, "m/s"),
            Term("torso_turn", 3, "rad/s"),
            Term("joint_velocity", 8, "rad/s"),
            Term("contact_wrench", 6 * NUM_BODIES, "Nm, N", clip=CONTACT_FORCE_RANGE[1]),
        )
        return replace(super().interface(), terms=terms)

    def observe(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        forces = self._contact_forces(state).flatten(1)
        # Gymnasium has not computed contact forces yet when it observes a fresh episode.
        forces = torch.where((episode.step == 0).unsqueeze(-1), torch.zeros_like(forces), forces)
        return {"policy": torch.cat((state.qpos[:, 2:], state.qvel, forces), dim=-1)}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        forward_velocity = (state.qpos[:, 0] - episode.memory["x_m"]) / self.control_dt
        height = state.qpos[:, 2]
        finite = state.qpos.isfinite().all(-1) & state.qvel.isfinite().all(-1)
        value = episode.parameters
        healthy = finite & (height >= value["healthy_z_min_m"]) & (height <= value["healthy_z_max_m"])
        reward = {
            "forward": value["forward_weight"] * forward_velocity,
            "healthy": value["healthy_reward"] * healthy,
            "control": -value["control_cost_weight"].to(action.dtype) * action.square().sum(-1),
            "contact": -value["contact_cost_weight"] * self._contact_forces(state).square().sum((-1, -2)),
        }
        return Outcome(reward, ~healthy, {"forward_velocity_m_s": forward_velocity})

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        nq, nv = 15, 14
        noise = episode.random.uniform("start_position", nq, -RESET_NOISE_SCALE, RESET_NOISE_SCALE)
        return self._initial_qpos + noise, RESET_NOISE_SCALE * episode.random.normal("start_velocity", nv)

    def _contact_forces(self, state: PhysicsState) -> Tensor:
        """Clipped external wrench on every body about the ant's centre of mass `[N, 13, 6]`."""
        com = state.sensordata[:, self.sensor["torso_com"]]
        contacts = contact_wrench(state.sensordata[:, self._contacts], com)
        bodies = contacts.unflatten(1, (NUM_BODIES, CONTACTS_PER_BODY)).sum(2)
        return bodies.clamp(*CONTACT_FORCE_RANGE)
