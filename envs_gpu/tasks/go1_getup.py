"""Get a Unitree Go1 up from however it fell, and stand.

Letters: N worlds, A actions, B lying states.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs_gpu.interface import PolicyInterface
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import get_robot
from envs_gpu.tasks import task
from envs_gpu.tasks._legged import Legged
from envs_gpu.tasks.base import Episode, Outcome
from envs_gpu.terms import locomotion
from envs_gpu.terms.pose import quaternion, quaternion_product

NUM_FALLS, SETTLE_S = 128, 1.5
"""Falls that are simulated once for the lying states, and how long each may take to come to rest."""


@task("go1_getup")
class Go1Getup(Legged):
    """Observation groups, noise-free:

    `policy` `[N, 42]`: projected gravity (3), angular velocity (3), joint positions relative to the default
    pose (12), joint velocities (12), last action (12).
    `critic` `[N, 54]`: all of it, then linear velocity (3), base height (1), foot contacts (4), foot heights
    (4).

    Trunk, hips, thighs, calves and feet touch the ground, and pass through each other. Most episodes start
    from a fall that has come to rest, the others in one. None ends before its time.
    """

    robot = get_robot("go1")
    imu_site = "imu"
    foot_geoms = (("FR",), ("FL",), ("RR",), ("RL",))
    contacts_per_foot_geom = 1
    base_geoms = ("geom_2", "geom_3")  # the cylinders along the trunk's sides, which hold its box
    limb_geoms = (
        *("geom_7", "geom_8"),  # lower and upper edge of the head
        *("geom_10", "geom_21", "geom_32", "geom_44"),  # hips
        *("geom_13", "geom_24", "geom_36", "geom_48"),  # thighs
        *("geom_17", "geom_28", "geom_40", "geom_52"),  # calves, upper half
        *("geom_18", "geom_29", "geom_41", "geom_53"),  # and lower half
    )
    parameters = (
        Parameter("upright_weight", 2.0, "1/s", "how far it has turned over", low=0.0),
        Parameter("height_weight", 2.0, "1/s", "how high an upright base is", low=0.0),
        Parameter("pose_weight", 2.0, "1/s", "a high base above the default pose", low=0.0),
        Parameter("still_weight", 0.5, "1/s", "a high base over joints at rest", low=0.0),
        Parameter("power_weight", -2e-4, "1/J", "mechanical power", high=0.0),
        Parameter("torque_weight", -5e-5, "1/(s N²m²)", "squared torques", high=0.0),
        Parameter("action_rate_weight", -0.01, "1/s", "squared change of the action", high=0.0),
        Parameter("joint_limits_weight", -0.5, "1/(s rad)", "how far joints are beyond limits", high=0.0),
        Parameter("upright_cosine_min", 0.9, "1", "of a base that counts as upright", -1.0, 1.0),
    )
    lying_share = 0.8
    drop_height_m = 0.5
    """Of the base; the legs reach 0.45 m."""
    standing_share_of_height, standing_feet = 0.7, 3
    """A robot stands that is upright, so high, and on so many feet; its default pose sags to 0.8 of it."""
    max_episode_steps = 300
    # A fallen robot lies on up to a dozen parts, and one of them sets in or lifts off within rounding more
    # often than feet do: Warp and Newton are 10 times as far as the control group at the 99th percentile.
    rounding_factor = 2.0

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        self._lying = torch.tensor(lying_states(), device=device)  # [B, nq]

    def control(self, action: Tensor) -> Tensor:
        """Zero is the default pose and ±1 are the joints' limits: legs that push a robot over reach far."""
        up, down = self._target_high - self._default_pose, self._default_pose - self._target_low
        return self._default_pose + action * torch.where(action > 0, up, down)

    def interface(self) -> PolicyInterface:
        interface = super().interface()
        targets = interface.targets
        up, down = targets.high - targets.offset, targets.offset - targets.low
        return replace(interface, targets=replace(targets, scale=up, scale_below=down))

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        random = episode.random
        choice = random.uniform("start_choice", 2)
        lies = choice[:, :1] < self.lying_share
        lying = self._lying[(choice[:, 1] * len(self._lying)).long()]
        yaw = random.uniform("start_yaw", 1, -torch.pi, torch.pi)
        turn = quaternion(torch.cat((torch.zeros_like(yaw), torch.zeros_like(yaw), yaw), -1))
        turned = torch.cat((lying[:, :3], quaternion_product(turn, lying[:, 3:7]), lying[:, 7:]), -1)
        qpos = torch.where(lies, turned, self._dropped(episode))
        speed = random.uniform("start_velocity", 6 + self._num_joints, -0.5, 0.5)
        return qpos, torch.where(lies, 0.0, speed)

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        return {"last_action": torch.zeros(len(state.qpos), self._num_joints, device=state.qpos.device)}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return {"last_action": action.clone()}

    def observe(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        policy = self._proprioception(state, episode.memory["last_action"])
        critic = (*policy, *self._privileged(state))
        return {"policy": torch.cat(policy, -1), "critic": torch.cat(critic, -1)}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        read = state.sensordata
        up, torque = read[:, self.sensor["up"]][:, 2], read[:, self._torque]
        height = (state.qpos[:, 2] / self.robot.base_height_m).clamp(0.0, 1.0)
        joints, speeds = state.qpos[:, 7:], state.qvel[:, 6:]
        pose_error = (joints - self._default_pose).square().sum(-1)
        # Each counts as far as the one before is reached: first turn over, then rise, then stand well.
        upright = 0.5 + 0.5 * up
        high = upright.square() * height
        terms = {
            "upright": upright,
            "height": high,
            "pose": high * (-0.15 * pose_error).exp(),
            "still": high * (-0.05 * speeds.square().sum(-1)).exp(),
            "power": locomotion.mechanical_power(torque, speeds),
            "torque": torque.square().sum(-1),
            "action_rate": (action - episode.memory["last_action"]).square().sum(-1),
            "joint_limits": locomotion.beyond_limits(joints, self._target_low, self._target_high),
        }
        is_upright = up > episode.parameters["upright_cosine_min"]
        at_height = height > self.standing_share_of_height
        on_feet = self._foot_contact(state).sum(-1) >= self.standing_feet
        measures = {"upright": is_upright, "standing": is_upright & at_height & on_feet}
        return Outcome(self.weigh(terms, episode.parameters), torch.zeros_like(is_upright), measures)

    def _dropped(self, episode: Episode) -> Tensor:
        """In the air `[N, nq]`, turned any way, with the joints anywhere."""
        random = episode.random
        orientation = random.normal("start_orientation", 4)
        orientation = orientation / orientation.square().sum(-1, keepdim=True).sqrt()
        share = random.uniform("start_joints", self._num_joints)
        joints = self._target_low + share * (self._target_high - self._target_low)
        position = torch.zeros_like(orientation[:, :3])
        position[:, 2] = self.drop_height_m
        return torch.cat((position, orientation, joints), -1)


@functools.cache
def lying_states() -> NDArray[np.float64]:
    """`[B, nq]` robots that fell with stiff legs and do not stand, at rest, in the middle of the floor."""
    settling = Go1Getup()
    model = settling.scene().compile()
    data, random = mujoco.MjData(model), np.random.default_rng(0)
    low, high = model.actuator_ctrlrange.T
    states = []
    for _ in range(NUM_FALLS):
        mujoco.mj_resetData(model, data)
        orientation = random.normal(size=4)
        data.ctrl = data.qpos[7:] = random.uniform(low, high)
        data.qpos[:7] = [0, 0, settling.drop_height_m, *orientation / np.linalg.norm(orientation)]
        mujoco.mj_step(model, data, int(SETTLE_S / settling.timestep_s))
        stands = data.qpos[2] > settling.standing_share_of_height * settling.robot.base_height_m
        if np.abs(data.qvel).max() < 0.1 and not stands:
            states.append([0.0, 0.0, *data.qpos[2:]])
    return np.array(states)
