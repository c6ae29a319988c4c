"""Robot models, by name, from the packages that maintain them.

Menagerie's robots are downloaded at first use and cached; `MENAGERIE_ROOT` names a folder to read instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import gymnasium
import mujoco
import mujoco_menagerie
import numpy as np

from envs_gpu.errors import RobotUnavailableError
from envs_gpu.models import load_model
from envs_gpu.registry import UnknownNameError

# Gymnasium's half cheetah sets its total mass in a way that MuJoCo means to give up.
warnings.filterwarnings("ignore", message="compiler attribute 'settotalmass' is deprecated")


@dataclass(frozen=True)
class Motor:
    """A joint's servo: torque = stiffness (target - position) - damping velocity, within the limit."""

    joints: str
    """The joints that have it, as a file-name pattern (`*_knee_joint`)."""
    stiffness: float
    """Nm/rad, or N/m on a slide joint."""
    damping: float
    """Nm s/rad, or N s/m."""
    effort_limit: float
    """Nm, or N."""
    armature: float
    """The rotor's inertia seen at the joint, kg m²; kg on a slide joint."""
    friction_loss: float = 0.0
    """Dry friction, Nm or N."""


@dataclass(frozen=True)
class Robot:
    """What a task needs to know about a robot beside its MJCF."""

    name: str
    description: str
    folder: str
    """Menagerie's name of the robot."""
    entry: str
    """Menagerie's name of the MJCF file in that folder."""
    motors: tuple[Motor, ...]
    """For every joint, the first one whose pattern matches."""
    default_pose: tuple[tuple[str, float], ...]
    """(joint pattern, rad or m) of the pose that actions are relative to; other joints are at zero."""
    action_scale: float
    """Target offset from the default pose for an action of one, rad or m."""
    end_effectors: tuple[str, ...]
    """Sites: the feet, or the tool."""
    base_body: str
    base_height_m: float = 0.0
    """Height of a floating base in the default pose."""

    def motor(self, joint: str) -> Motor:
        """The servo of a joint.

        Raises:
            LookupError: no pattern matches.
        """
        for motor in self.motors:
            if fnmatch(joint, motor.joints):
                return motor
        raise LookupError(f"robot {self.name!r} has no motor for the joint {joint!r}")

    def default_position(self, joint: str) -> float:
        """Where a joint is in the default pose, rad or m."""
        return next((value for pattern, value in self.default_pose if fnmatch(joint, pattern)), 0.0)


_GO1 = Robot(
    name="go1",
    description="Unitree Go1, a quadruped with 12 joints",
    folder="unitree_go1",
    entry="go1",
    # Torque limits are menagerie's; gains are those that walking policies run on the robot.
    motors=(
        Motor("*_calf_joint", 35.0, 0.7, effort_limit=35.55, armature=0.01, friction_loss=0.2),
        Motor("*", 35.0, 0.7, effort_limit=23.7, armature=0.01, friction_loss=0.2),
    ),
    default_pose=(("*_thigh_joint", 0.9), ("*_calf_joint", -1.8)),
    action_scale=0.5,
    end_effectors=("FR", "FL", "RR", "RL"),
    base_body="trunk",
    base_height_m=0.288,
)

_G1 = Robot(
    name="g1",
    description="Unitree G1, a humanoid with 29 joints",
    folder="unitree_g1",
    entry="g1_mjlab",
    # Limits and rotor inertias of Unitree's motors 7520-22, 7520-14, 5020 (two in parallel at ankles and
    # waist) and 4010; stiffness and damping give each a 10 Hz response with a damping ratio of 2.
    motors=(
        Motor("*_hip_roll_joint", 99.1, 6.31, effort_limit=139.0, armature=0.0251),
        Motor("*_knee_joint", 99.1, 6.31, effort_limit=139.0, armature=0.0251),
        Motor("*_hip_*_joint", 40.2, 2.56, effort_limit=88.0, armature=0.0102),
        Motor("waist_yaw_joint", 40.2, 2.56, effort_limit=88.0, armature=0.0102),
        Motor("waist_*_joint", 28.5, 1.81, effort_limit=50.0, armature=0.00722),
        Motor("*_ankle_*_joint", 28.5, 1.81, effort_limit=50.0, armature=0.00722),
        Motor("*_wrist_pitch_joint", 16.8, 1.07, effort_limit=5.0, armature=0.00425),
        Motor("*_wrist_yaw_joint", 16.8, 1.07, effort_limit=5.0, armature=0.00425),
        Motor("*", 14.3, 0.907, effort_limit=25.0, armature=0.00361),
    ),
    default_pose=(
        ("*_hip_pitch_joint", -0.312),
        ("*_knee_joint", 0.669),
        ("*_ankle_pitch_joint", -0.363),
        ("*_elbow_joint", 0.6),
        ("left_shoulder_roll_joint", 0.2),
        ("right_shoulder_roll_joint", -0.2),
        ("*_shoulder_pitch_joint", 0.2),
    ),
    action_scale=0.5,
    end_effectors=("left_foot", "right_foot"),
    base_body="pelvis",
    base_height_m=0.76,
)

_YAM = Robot(
    name="yam",
    description="I2RT YAM, an arm with 6 joints and a gripper",
    folder="i2rt_yam",
    entry="yam",
    motors=(
        Motor("joint[123]", 80.0, 8.0, effort_limit=28.0, armature=0.032),
        Motor("joint?", 20.0, 2.0, effort_limit=10.0, armature=0.0018),
        Motor("*_finger", 500.0, 30.0, effort_limit=50.0, armature=0.05),
    ),
    default_pose=(("joint2", 1.047), ("joint3", 1.047), ("left_finger", 0.0375), ("right_finger", -0.0375)),
    action_scale=0.5,
    end_effectors=("grasp_site",),
    base_body="arm",
)

ROBOTS = {robot.name: robot for robot in (_GO1, _G1, _YAM)}


def get_robot(name: str) -> Robot:
    """The robot called `name`.

    Raises:
        UnknownNameError: no such robot; the message suggests the nearest.
    """
    if name not in ROBOTS:
        raise UnknownNameError("robot", name, sorted(ROBOTS))
    return ROBOTS[name]


_downloads = True


@contextmanager
def without_downloads() -> Iterator[None]:
    """Within it a robot whose files are not on this machine is an error at once."""
    global _downloads
    before, _downloads = _downloads, False
    try:
        yield
    finally:
        _downloads = before


def menagerie_model(folder: str, entry: str) -> mujoco.MjSpec:
    """An MJCF of MuJoCo Menagerie, from `MENAGERIE_ROOT`, the cache, or a download.

    Raises:
        RobotUnavailableError: it is in none of the three.
    """
    if not _downloads and _folder_of(folder) is None:
        raise RobotUnavailableError(f"the files of the robot {folder!r} are not on this machine", folder)
    try:
        path = mujoco_menagerie.get(folder).xml(entry)
    except (mujoco_menagerie.MenagerieError, OSError) as error:
        raise RobotUnavailableError(
            f"no files of the robot {folder!r}: {error}; connect to the internet, or set the environment "
            "variable MENAGERIE_ROOT to a folder laid out like MuJoCo Menagerie",
            folder,
        ) from error
    if not path.is_file():
        raise RobotUnavailableError(
            f"no files of the robot {folder!r}: {path} does not exist; set the environment variable "
            "MENAGERIE_ROOT to a folder laid out like MuJoCo Menagerie",
            folder,
        )
    return load_model(path, trusted=True)


def robot_model(robot: Robot) -> mujoco.MjSpec:
    """The robot alone: its motors on the joints, every geom named, and a keyframe `default`.

    The MJCF's own actuators and keyframes are dropped. Joint damping is the motor's alone.

    Raises:
        RobotUnavailableError: see `menagerie_model`.
    """
    spec = menagerie_model(robot.folder, robot.entry)
    for element in (*spec.actuators, *spec.keys):
        spec.delete(element)
    for number, geom in enumerate(spec.geoms):
        geom.name = geom.name or f"geom_{number}"
    joints = [joint for joint in spec.joints if joint.type != mujoco.mjtJoint.mjJNT_FREE]
    for joint in joints:
        _add_motor(spec, joint, robot.motor(joint.name))
    default = [robot.default_position(joint.name) for joint in joints]
    floating = len(spec.joints) > len(joints)
    base = [0.0, 0.0, robot.base_height_m, 1.0, 0.0, 0.0, 0.0] if floating else []
    spec.add_key(name="default", qpos=base + default, ctrl=default)
    return spec


def files_of(robot: Robot) -> Path | None:
    """The folder with a robot's files, of `MENAGERIE_ROOT` or the cache; None if they would be downloaded."""
    return _folder_of(robot.folder)


def _folder_of(robot: str) -> Path | None:
    """The folder with the files of Menagerie's `robot`, if it is on this machine."""
    cache, known = mujoco_menagerie.Cache(), mujoco_menagerie.get(robot)
    folder = cache.root / known.name if cache.root else cache.model_path(known)
    return folder if folder.is_dir() else None


def _add_motor(spec: mujoco.MjSpec, joint: mujoco.MjsJoint, motor: Motor) -> None:
    joint.armature = motor.armature
    joint.frictionloss = motor.friction_loss
    joint.damping = np.zeros_like(joint.damping)
    actuator = spec.add_actuator(
        name=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT, target=joint.name, ctrlrange=joint.range
    )
    actuator.set_to_position(kp=motor.stiffness, kv=motor.damping)
    actuator.forcerange = (-motor.effort_limit, motor.effort_limit)
    actuator.ctrllimited = actuator.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE


def gymnasium_model(name: str) -> mujoco.MjSpec:
    """The MJCF of one of Gymnasium's MuJoCo environments, every geom and body named.

    Raises:
        FileNotFoundError: Gymnasium ships no such model.
    """
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / f"{name}.xml"
    if not path.is_file():
        raise FileNotFoundError(f"gymnasium ships no model {name!r}: {path} does not exist")
    spec = load_model(path, trusted=True)
    for kind in ("body", "geom"):
        for number, element in enumerate(spec.worldbody.find_all(kind)):
            element.name = element.name or f"{kind}_{number}"
    return spec


def gymnasium_models() -> list[str]:
    """What `gymnasium_model` can give, sorted."""
    folder = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    return sorted(path.stem for path in folder.glob("*.xml"))
