"""Run forward as a four-legged ant: Gymnasium's Ant-v5.

Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation";
the observation, reward, termination and model are those of Gymnasium 1.x's Ant-v5 with default arguments.

One difference, on purpose: Gymnasium reads torso position and contact forces as the last Runge-Kutta stage
left them, which belongs to none of the states that the agent sees. Here they belong to the state returned.
"""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from envs_gpu.mirror import AXIAL, POLAR, QUATERNION, SCALAR, WRENCH
from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import gymnasium_model
from envs_gpu.tasks import task
from envs_gpu.tasks.base import Episode, Outcome, Task
from envs_gpu.terms.contact import add_contact_sensor, contact_wrench

MAX_CONTACT_FORCE = 1.0
"""Contact forces (N) and torques (Nm) are clipped to ± this."""
RESET_NOISE_SCALE = 0.1
NUM_BODIES = 13
CONTACTS_PER_BODY = 2  # a capsule touches the floor with its two ends, the torso's sphere once


@task("ant")
class Ant(Task):
    """Observation `policy` `[N, 105]`; the contact wrenches are Gymnasium's `cfrc_ext`."""

    parameters = (
        Parameter("forward_weight", 1.0, "s/m", "reward for the forward velocity"),
        Parameter("healthy_reward", 1.0, "1", "reward for a healthy step", low=0.0),
        Parameter("control_cost_weight", 0.5, "1", "cost of the squared actions", low=0.0),
        Parameter("contact_cost_weight", 5e-4, "1", "cost of the squared contact wrenches", low=0.0),
        Parameter("healthy_z_min_m", 0.2, "m", "height of the torso below which the episode ends"),
        Parameter("healthy_z_max_m", 1.0, "m", "height of the torso above which the episode ends"),
    )
    is_symmetric = True
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
        self._contacts = self.sensor_block("contact_")

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        return {"x_m": state.qpos[:, 0].clone()}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return self.begin(state, episode)

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        wrenches = 6 * NUM_BODIES
        joints = self.mirror.joints if self.mirror else None
        terms = (
            ObservationTerm("torso_height", 1, lambda state, _: state.qpos[:, 2:3], "m", mirror=SCALAR),
            ObservationTerm(
                "torso_orientation",
                4,
                lambda state, _: state.qpos[:, 3:7],
                low=-2.0,
                high=2.0,
                mirror=QUATERNION,
            ),
            ObservationTerm("joint_position", 8, lambda state, _: state.qpos[:, 7:], "rad", mirror=joints),
            ObservationTerm("torso_velocity", 3, lambda state, _: state.qvel[:, :3], "m/s", mirror=POLAR),
            ObservationTerm("torso_turn", 3, lambda state, _: state.qvel[:, 3:6], "rad/s", mirror=AXIAL),
            ObservationTerm("joint_velocity", 8, lambda state, _: state.qvel[:, 6:], "rad/s", mirror=joints),
            ObservationTerm(
                "contact_wrench",
                wrenches,
                self._observed_wrenches,
                "Nm, N",
                clip=MAX_CONTACT_FORCE,
                mirror=self.mirror.bodies().of_blocks(WRENCH) if self.mirror else None,
            ),
        )
        return {"policy": terms}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        forward_velocity = (state.qpos[:, 0] - episode.memory["x_m"]) / self.control_dt
        height = state.qpos[:, 2]
        finite = state.qpos.isfinite().all(-1) & state.qvel.isfinite().all(-1)
        value = episode.parameters
        wrenches = self._contact_wrenches(state).clamp(-MAX_CONTACT_FORCE, MAX_CONTACT_FORCE)
        healthy = finite & (height >= value["healthy_z_min_m"]) & (height <= value["healthy_z_max_m"])
        reward = {
            "forward": value["forward_weight"] * forward_velocity,
            "healthy": value["healthy_reward"] * healthy,
            "control": -value["control_cost_weight"].to(action.dtype) * action.square().sum(-1),
            "contact": -value["contact_cost_weight"] * wrenches.square().sum((-1, -2)),
        }
        return Outcome(reward, ~healthy, {"forward_velocity_m_s": forward_velocity})

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        nq, nv = 15, 14
        noise = episode.random.uniform("start_position", nq, -RESET_NOISE_SCALE, RESET_NOISE_SCALE)
        return self._initial_qpos + noise, RESET_NOISE_SCALE * episode.random.normal("start_velocity", nv)

    def _contact_wrenches(self, state: PhysicsState) -> Tensor:
        """External wrench on every body about the ant's centre of mass `[N, 13, 6]`."""
        com = state.sensordata[:, self.sensor["torso_com"]]
        contacts = contact_wrench(state.sensordata[:, self._contacts], com)
        return contacts.unflatten(1, (NUM_BODIES, CONTACTS_PER_BODY)).sum(2)

    def _observed_wrenches(self, state: PhysicsState, episode: Episode) -> Tensor:
        """The wrenches `[N, 78]`; zero at an episode's start, where Gymnasium has not computed them yet."""
        wrenches = self._contact_wrenches(state).flatten(1)
        return torch.where((episode.step == 0).unsqueeze(-1), torch.zeros_like(wrenches), wrenches)
