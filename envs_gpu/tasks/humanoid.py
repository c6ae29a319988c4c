"""Run forward on two legs: Gymnasium's Humanoid-v5.

Source: Tassa, Erez and Todorov 2012, "Synthesis and stabilization of complex behaviors through online
trajectory optimization"; the observation, reward, termination and model are those of Gymnasium 1.x's
Humanoid-v5 with default arguments.

Limbs touch each other: in 5 to 8 % of the steps under random actions, so contact forces are those with
anything, not with the floor alone.
"""

from __future__ import annotations

import itertools

import mujoco
import torch
from torch import Tensor

from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import GymnasiumTask, strictly_between
from envs_gpu.tasks.base import Episode, Outcome
from envs_gpu.terms.contact import add_contact_sensor, contact_wrench
from envs_gpu.terms.spatial import inertia_about, velocity_about

CONTACTS_PER_GEOM = 4
"""Room for the contacts of one geom: none of 20,684 control steps under random actions had more."""

_BODY, _JOINT = mujoco.mjtObj.mjOBJ_BODY, mujoco.mjtObj.mjOBJ_JOINT
_SENSOR = mujoco.mjtSensor
_FRAME = {
    "position": (_SENSOR.mjSENS_FRAMEPOS, 3),
    "orientation": (_SENSOR.mjSENS_FRAMEQUAT, 4),
    "linear": (_SENSOR.mjSENS_FRAMELINVEL, 3),
    "angular": (_SENSOR.mjSENS_FRAMEANGVEL, 3),
}
"""What is read of every body's inertial frame: name -> sensor and width."""


@task("humanoid")
class Humanoid(GymnasiumTask):
    """Observation `policy` `[N, 348]`."""

    parameters = (
        Parameter("forward_weight", 1.25, "s/m", "reward for the centre of mass's forward velocity"),
        Parameter("healthy_reward", 5.0, "1", "reward for a healthy step", low=0.0),
        Parameter("control_cost_weight", 0.1, "1", "cost of the squared actions", low=0.0),
        Parameter("contact_cost_weight", 5e-7, "1", "cost of the squared contact wrenches", low=0.0),
        Parameter("contact_cost_max", 10.0, "1", "the contact wrenches cost no more", low=0.0),
        Parameter("healthy_z_min_m", 1.0, "m", "height of the torso below which the episode ends"),
        Parameter("healthy_z_max_m", 2.0, "m", "height of the torso above which the episode ends"),
    )
    model_name = "humanoid"
    reset_noise_scale = 1e-2
    substeps = 5

    def scene(self) -> mujoco.MjSpec:
        spec = super().scene()
        spec.add_sensor(name="com", type=_SENSOR.mjSENS_SUBTREECOM, objtype=_BODY, objname="torso")
        bodies = spec.worldbody.find_all("body")
        for what, (kind, _) in _FRAME.items():
            for body in bodies:
                spec.add_sensor(name=f"{what}_{body.name}", type=kind, objtype=_BODY, objname=body.name)
        hinges = [joint for joint in spec.joints if joint.type == mujoco.mjtJoint.mjJNT_HINGE]
        for joint in hinges:
            kind = _SENSOR.mjSENS_JOINTACTFRC
            spec.add_sensor(name=f"torque_{joint.name}", type=kind, objtype=_JOINT, objname=joint.name)
        for geom in itertools.chain.from_iterable(body.geoms for body in bodies):
            add_contact_sensor(spec, geom.name, None, CONTACTS_PER_GEOM)
        return spec

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        self._mass = torch.tensor(model.body_mass[1:], device=device)  # [B]
        self._principal = torch.tensor(model.body_inertia[1:], device=device)  # [B, 3]
        self._frames = {what: self.sensor_block(f"{what}_") for what in _FRAME}
        self._torques, self._contacts = self.sensor_block("torque_"), self.sensor_block("contact_")
        # A body's geoms are consecutive, so its contacts are, too.
        self._contacts_of_body = (CONTACTS_PER_GEOM * model.body_geomnum[1:]).tolist()

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        return {"com_x_m": self._com(state)[:, 0].clone()}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return self.begin(state, episode)

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        torques = self._torques
        terms = (
            ObservationTerm("torso_height", 1, lambda state, _: state.qpos[:, 2:3], "m"),
            ObservationTerm("torso_orientation", 4, lambda state, _: state.qpos[:, 3:7], low=-2.0, high=2.0),
            ObservationTerm("joint_position", 17, lambda state, _: state.qpos[:, 7:], "rad"),
            ObservationTerm("torso_velocity", 3, lambda state, _: state.qvel[:, :3], "m/s"),
            ObservationTerm("torso_turn", 3, lambda state, _: state.qvel[:, 3:6], "rad/s"),
            ObservationTerm("joint_velocity", 17, lambda state, _: state.qvel[:, 6:], "rad/s"),
            ObservationTerm("inertia", 130, self._body_inertias, "kg m², kg m, kg"),
            ObservationTerm("body_velocity", 78, self._body_velocities, "rad/s, m/s"),
            ObservationTerm("joint_torque", 17, lambda state, _: state.sensordata[:, torques], "Nm"),
            ObservationTerm("contact_wrench", 78, self._observed_wrenches, "Nm, N"),
        )
        return {"policy": terms}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        forward_velocity = (self._com(state)[:, 0] - episode.memory["com_x_m"]) / self.control_dt
        value = episode.parameters
        healthy = strictly_between(state.qpos[:, 2], value["healthy_z_min_m"], value["healthy_z_max_m"])
        contact_cost = value["contact_cost_weight"] * self._contact_wrenches(state).square().sum((-1, -2))
        reward = {
            "forward": value["forward_weight"] * forward_velocity,
            "healthy": value["healthy_reward"] * healthy,
            "control": -value["control_cost_weight"].to(action.dtype) * action.square().sum(-1),
            "contact": -torch.minimum(contact_cost, value["contact_cost_max"]),
        }
        return Outcome(reward, ~healthy, {"forward_velocity_m_s": forward_velocity})

    def _com(self, state: PhysicsState) -> Tensor:
        """The humanoid's centre of mass `[N, 3]`, m."""
        return state.sensordata[:, self.sensor["com"]]

    def _body_frames(self, state: PhysicsState) -> dict[str, Tensor]:
        """The bodies' inertial frames in the world's axes, name in `_FRAME` -> `[N, B, width]`."""
        return {
            what: state.sensordata[:, where].unflatten(1, (-1, _FRAME[what][1]))
            for what, where in self._frames.items()
        }

    def _body_inertias(self, state: PhysicsState, _: Episode) -> Tensor:
        """Inertia of every body about the centre of mass `[N, 10 B]`, Gymnasium's `cinert`."""
        com, body = self._com(state), self._body_frames(state)
        mass, principal = self._mass.to(com.dtype), self._principal.to(com.dtype)
        return inertia_about(com, mass, principal, body["position"], body["orientation"]).flatten(1)

    def _body_velocities(self, state: PhysicsState, _: Episode) -> Tensor:
        """Velocity of every body about the centre of mass `[N, 6 B]`, Gymnasium's `cvel`."""
        com, body = self._com(state), self._body_frames(state)
        return velocity_about(com, body["linear"], body["angular"], body["position"]).flatten(1)

    def _observed_wrenches(self, state: PhysicsState, episode: Episode) -> Tensor:
        """The wrenches `[N, 6 B]`; zero at an episode's start, where Gymnasium has not computed them yet."""
        wrenches = self._contact_wrenches(state).flatten(1)
        return torch.where((episode.step == 0).unsqueeze(-1), torch.zeros_like(wrenches), wrenches)

    def _contact_wrenches(self, state: PhysicsState) -> Tensor:
        """Contact wrench on every body about the centre of mass `[N, B, 6]`."""
        contacts = contact_wrench(state.sensordata[:, self._contacts], self._com(state))
        return torch.stack([part.sum(1) for part in contacts.split(self._contacts_of_body, 1)], 1)
