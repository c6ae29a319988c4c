"""The left-right mirror image of a robot: which entry of a vector becomes which one, and with which sign.

The mirror is the plane y = 0. A position, a velocity or a force changes the sign of its y; an angular
velocity or a torque changes those of its x and z. Joints, feet and bodies swap places with those on the other
side, which are found in the model: no names are read.

Letters: D entries, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs_gpu.errors import EnvError

TOLERANCE_M = 1e-3
"""How far a joint or a site may be from the mirror image of its partner: makers round their lengths."""
COM_TOLERANCE_M = 0.01
"""The same of centres of mass: a battery is on one side."""
_KIND = mujoco.mjtJoint
_FREE, _HINGE, _SLIDE = int(_KIND.mjJNT_FREE), int(_KIND.mjJNT_HINGE), int(_KIND.mjJNT_SLIDE)
_Y = np.array([1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Mirror:
    """Entry i of a mirror image is `sign[i]` times entry `index[i]`. The image of the image is the original.

    Raises:
        EnvError: it is not.
    """

    index: Tensor
    """`[D]` int64."""
    sign: Tensor
    """`[D]` float32, 1 or -1."""

    def __post_init__(self) -> None:
        twice = self.index[self.index].cpu(), (self.sign * self.sign[self.index]).cpu()
        if not torch.equal(twice[0], torch.arange(self.width)) or not (twice[1] == 1).all():
            raise EnvError("a mirror that does not undo itself; correct its index or its signs")

    def __call__(self, values: Tensor) -> Tensor:
        """The mirror image of `values` `[..., D]`."""
        return values[..., self.index] * self.sign

    @property
    def width(self) -> int:
        """D."""
        return len(self.index)

    def to(self, device: torch.device) -> Mirror:
        """The same on another device."""
        return Mirror(self.index.to(device), self.sign.to(device))

    def of_blocks(self, inner: Mirror) -> Mirror:
        """Of D blocks: each swaps places as an entry does, and is itself mirrored by `inner`."""
        width = inner.width
        index = (self.index[:, None] * width + inner.index).flatten()
        return Mirror(index, (self.sign[:, None] * inner.sign).flatten())


def signs(*sign: int) -> Mirror:
    """Entries that stay where they are."""
    return Mirror(torch.arange(len(sign)), torch.tensor(sign, dtype=torch.float32))


def joined(mirrors: Sequence[Mirror]) -> Mirror:
    """Of vectors behind one another."""
    starts = np.cumsum([0, *(mirror.width for mirror in mirrors)]).tolist()
    index = torch.cat([mirror.index + start for mirror, start in zip(mirrors, starts, strict=False)])
    return Mirror(index, torch.cat([mirror.sign for mirror in mirrors]))


SCALAR, POLAR, AXIAL = signs(1), signs(1, -1, 1), signs(-1, 1, -1)
"""A number that has no side; a position, velocity or force; an angular velocity or torque."""
QUATERNION = signs(1, -1, 1, -1)
WRENCH = joined((AXIAL, POLAR))
"""A torque, then a force."""


def paired(points: NDArray[np.float64], what: str, tolerance_m: float = TOLERANCE_M) -> Mirror:
    """Of one number for each of `points` `[P, 3]`, m: it swaps places with that of the mirror image.

    Raises:
        EnvError: a point has no partner; `what` names the points.
    """
    distance = np.linalg.norm(points[None] - (points * _Y)[:, None], axis=-1)
    index = distance.argmin(1)
    if distance.min(1).max() > tolerance_m or (index[index] != np.arange(len(points))).any():
        raise EnvError(f"the {what} are not symmetric about the plane y = 0")
    return Mirror(torch.from_numpy(index), torch.ones(len(points)))


class ModelMirror:
    """The mirror of a model's state and controls, found in the reference configuration.

    The partner of a joint is where its mirror image is. That their limits and motors agree is checked; that
    masses and contacts do is what `tests/envs_gpu/test_mirror.py` simulates.

    Args:
        model: with free, hinge and slide joints, and controls that drive joints.

    Raises:
        EnvError: it is not symmetric.
    """

    qpos: Mirror
    """`[nq]`."""
    qvel: Mirror
    """`[nv]`."""
    joints: Mirror
    """Of one number for each joint but the free ones, such as their positions."""
    controls: Mirror
    """`[nu]`."""

    def __init__(self, model: mujoco.MjModel) -> None:
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        # Copies: the model is not kept, since it holds the vertices of all meshes.
        self._bodies = data.xipos[1:].copy()
        self._sites = {model.site(i).name: data.site_xpos[i].copy() for i in range(model.nsite)}
        self._single = [i for i in range(model.njnt) if model.jnt_type[i] in (_HINGE, _SLIDE)]
        self.joints = self._pair_joints(model, data)
        self.qpos, self.qvel = self._pair_state(model)
        self.controls = self._pair_controls(model)

    def sites(self, names: Sequence[str]) -> Mirror:
        """Of one number for each of these sites."""
        places = np.stack([self._sites[name] for name in names])
        return paired(places, f"sites {', '.join(names)}")

    def bodies(self) -> Mirror:
        """Of one number for each body but the world."""
        return paired(self._bodies, "bodies", COM_TOLERANCE_M)

    def _pair_joints(self, model: mujoco.MjModel, data: mujoco.MjData) -> Mirror:
        single = self._single
        hinge = (model.jnt_type[single] == _HINGE)[:, None]
        anchor, axis = data.xanchor[single], data.xaxis[single]
        image = axis * np.where(hinge, -_Y, _Y)
        turned = image @ axis.T  # [J, J] cosines: 1 or -1 for a partner
        far = np.linalg.norm(anchor[None] - (anchor * _Y)[:, None], axis=-1)
        fits = (far < TOLERANCE_M) & (np.abs(turned) > 1 - TOLERANCE_M) & (hinge == hinge.T)
        if (fits.sum(1) != 1).any():
            joint = model.joint(single[int((fits.sum(1) != 1).argmax())]).name
            raise EnvError(f"joint {joint!r} has not exactly one mirror image")
        index = fits.argmax(1)
        sign = np.sign(turned[np.arange(len(index)), index])
        names = [f"joint {model.joint(joint).name!r}" for joint in single]
        _require_same("range", names, model.jnt_range[single], index, sign)
        return Mirror(torch.from_numpy(index), torch.from_numpy(sign).float())

    def _pair_state(self, model: mujoco.MjModel) -> tuple[Mirror, Mirror]:
        single = self._single
        index = [torch.zeros(size, dtype=torch.int64) for size in (model.nq, model.nv)]
        sign = [torch.ones(size) for size in (model.nq, model.nv)]
        for joint in range(model.njnt):
            places = (model.jnt_qposadr[joint], model.jnt_dofadr[joint])
            if model.jnt_type[joint] == _FREE:
                mirrors = joined((POLAR, QUATERNION)), joined((POLAR, AXIAL))
                partners = places
            elif joint in single:
                number = single.index(joint)
                partner = single[int(self.joints.index[number])]
                mirrors = (signs(int(self.joints.sign[number])),) * 2
                partners = model.jnt_qposadr[partner], model.jnt_dofadr[partner]
            else:
                raise EnvError(f"joint {model.joint(joint).name!r} is a ball, whose mirror is not known")
            for k, (place, partner, mirror) in enumerate(zip(places, partners, mirrors, strict=True)):
                index[k][place : place + mirror.width] = mirror.index + int(partner)
                sign[k][place : place + mirror.width] = mirror.sign
        return Mirror(index[0], sign[0]), Mirror(index[1], sign[1])

    def _pair_controls(self, model: mujoco.MjModel) -> Mirror:
        numbers = {joint: i for i, joint in enumerate(self._single)}
        if (model.actuator_trntype != int(mujoco.mjtTrn.mjTRN_JOINT)).any():
            raise EnvError("an actuator does not drive a joint, so its mirror is not known")
        driven = [numbers[joint] for joint in model.actuator_trnid[:, 0]]
        index = np.array([driven.index(int(self.joints.index[number])) for number in driven])
        gear = np.sign(model.actuator_gear[:, 0])
        sign = self.joints.sign[driven].numpy() * gear * gear[index]
        names = [f"actuator {model.actuator(i).name!r}" for i in range(model.nu)]
        for what in ("ctrlrange", "forcerange"):
            _require_same(what, names, getattr(model, f"actuator_{what}"), index, sign)
        for what in ("gear", "gainprm", "biasprm"):
            values = np.abs(getattr(model, f"actuator_{what}"))
            if not np.allclose(values, values[index]):
                raise EnvError(f"actuators that are mirror images of each other differ in {what}")
        return Mirror(torch.from_numpy(index), torch.from_numpy(sign).float())


def _require_same(
    what: str,
    names: Sequence[str],
    ranges: NDArray[np.float64],
    index: NDArray[np.int64],
    sign: NDArray[np.float32],
) -> None:
    """Check that `ranges` `[D, 2]` are the mirror images of those of their partners.

    Raises:
        EnvError: one of `names` has another.
    """
    image = np.where(sign[:, None] > 0, ranges[index], -ranges[index][:, ::-1])
    far = np.abs(ranges - image).max(1)
    if (far > 1e-6).any():
        name, partner = names[int(far.argmax())], names[int(index[far.argmax()])]
        raise EnvError(f"the {what} of {name} is not the mirror image of that of {partner}")


class EnvMirror(NamedTuple):
    """The mirror of what a policy sees and does, on the env's device."""

    groups: dict[str, Mirror]
    """Observation group -> its mirror, of the row that the policy sees."""
    action: Mirror
