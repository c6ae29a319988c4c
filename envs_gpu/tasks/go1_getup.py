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

from envs_gpu.interface import Targets
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import get_robot
from envs_gpu.tasks import task
from envs_gpu.tasks._legged import Legged
from envs_gpu.tasks.base import Episode, Outcome
from envs_gpu.terms import locomotion
from envs_gpu.terms.pose import quaternion, quaternion_product

NUM_FALLS, SETTLE_S = 128, 1.5
"""How many falls are simulated once to get lying states, and how long each is given to come to rest."""


@task("go1_getup")
class Go1Getup(Legged):
    """Observation groups: `policy` `[N, 42]` and `critic` `[N, 54]`.

    Trunk, hips, thighs, calves and feet touch the ground, and pass through each other. Most episodes start
    with the robot lying on the ground, the others with it in the air. No episode is terminated.
    """

    is_symmetric = True
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
        Parameter("upright_weight", 2.0, "1/s", "how far it has turned upright", low=0.0),
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
    """Height of the base where an episode starts in the air; the legs reach 0.45 m."""
    standing_share_of_height, standing_feet = 0.7, 3
    """A robot stands if it is upright, at this share of its height, on this many feet. In the default pose it
    sags to a share of 0.8."""
    max_episode_steps = 300
    # A fallen robot has up to a dozen contacts, so rounding decides more often than with four feet whether
    # one begins or ends: Warp and Newton have 10 times the control group's error at the 99th percentile.
    rounding_factor = 2.0

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        self._lying = torch.tensor(lying_states(), device=device)  # [B, nq]

    def control(self, action: Tensor) -> Tensor:
        """Zero is the default pose and ±1 are the joints' limits: turning over takes large joint angles."""
        up, down = self._target_high - self._default_pose, self._default_pose - self._target_low
        return self._default_pose + action * torch.where(action > 0, up, down)

    def targets(self) -> Targets:
        targets = super().targets()
        up, down = targets.high - targets.offset, targets.offset - targets.low
        return replace(targets, scale=up, scale_below=down)

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

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        read = state.sensordata
        up, torque = read[:, self.sensor["up"]][:, 2], read[:, self._torque]
        height = (state.qpos[:, 2] / self.robot.base_height_m).clamp(0.0, 1.0)
        joints, speeds = state.qpos[:, 7:], state.qvel[:, 6:]
        pose_error = (joints - self._default_pose).square().sum(-1)
        # Each is multiplied by the one before: first turn upright, then rise, then take the pose and rest.
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
        """Positions in the air `[N, nq]`, with random orientation and joints."""
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
    """`[B, nq]` positions of robots that fell with stiff legs, came to rest and do not stand; x, y are 0."""
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
