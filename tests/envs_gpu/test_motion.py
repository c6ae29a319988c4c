"""Features and changes of a state, beside MuJoCo's own integration of positions."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.motion import Motion

CPU, CONTROL_DT = torch.device("cpu"), 0.02
MODEL = """
<mujoco>
  <worldbody>
    <body>
      <freejoint/><geom size="0.1"/>
      <body pos="0 0 1"><joint type="ball"/><geom size="0.1"/></body>
      <body pos="0 1 0"><joint type="hinge"/><geom size="0.1"/></body>
      <body pos="1 0 0"><joint type="slide" axis="1 0 0"/><geom size="0.1"/></body>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def model():
    """A free joint, a ball joint, a hinge without limits and a slide."""
    return mujoco.MjModel.from_xml_string(MODEL)


@pytest.fixture
def motion(model):
    return Motion(model, (), CONTROL_DT, CPU)


def random_states(model, number=16, seed=0):
    """Positions `[N, nq]` with unit quaternions, and velocities `[N, nv]`, float64."""
    random = torch.Generator().manual_seed(seed)
    qpos = torch.randn(number, model.nq, generator=random, dtype=torch.float64).numpy()
    for row in qpos:
        mujoco.mj_normalizeQuat(model, row)
    return torch.from_numpy(qpos), torch.randn(number, model.nv, generator=random, dtype=torch.float64)


def test_positions_are_integrated_as_mujoco_does(model, motion):
    """Without a change the velocity stays, and positions follow as in `mj_integratePos`."""
    qpos, qvel = random_states(model)
    after, velocity = motion.advance(qpos, qvel, torch.zeros(len(qpos), 2 * model.nv, dtype=torch.float64))
    assert torch.equal(velocity, qvel)
    for ours, start, speed in zip(after, qpos, qvel, strict=True):
        theirs = start.numpy().copy()
        mujoco.mj_integratePos(model, theirs, speed.numpy(), CONTROL_DT)
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)


def test_a_change_leads_from_one_state_to_the_other(model, motion):
    """A quaternion may come out with the other sign, which is the same rotation."""
    before, after = random_states(model, seed=1), random_states(model, seed=2)
    qpos, qvel = motion.advance(*before, motion.change(*before, *after))
    torch.testing.assert_close(qvel, after[1], rtol=0, atol=1e-12)
    off = motion.pose.difference(qpos, after[0])
    torch.testing.assert_close(off, torch.zeros_like(off), rtol=0, atol=1e-9)


def test_where_the_robot_is_and_faces_changes_nothing(model, motion):
    """Features and changes stay the same when the world is shifted and turned about the vertical."""
    before, after = random_states(model, seed=3), random_states(model, seed=4)
    assert motion.features(*before).shape[1] == motion.num_features
    moved = [_turned(*state, angle=0.7, shift=(3.0, -2.0)) for state in (before, after)]
    torch.testing.assert_close(motion.features(*moved[0]), motion.features(*before), rtol=0, atol=1e-12)
    change = motion.change(*before, *after)
    torch.testing.assert_close(motion.change(*moved[0], *moved[1]), change, rtol=0, atol=1e-9)


def test_declared_positions_are_no_features(model):
    """A slide that a task declares as uniform is left out."""
    address = model.nq - 1
    qpos, qvel = random_states(model)
    moved = qpos.clone()
    moved[:, address] += 5.0
    uniform = Motion(model, (address,), CONTROL_DT, CPU)
    assert torch.equal(uniform.features(moved, qvel), uniform.features(qpos, qvel))


def _turned(qpos, qvel, angle, shift):
    """The same state after the world was turned about the vertical and shifted."""
    qpos, qvel = qpos.clone().numpy(), qvel.clone().numpy()
    turn = np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])
    for position, velocity in zip(qpos, qvel, strict=True):
        for vector in (position[:3], velocity[:3]):
            mujoco.mju_rotVecQuat(vector, vector.copy(), turn)
        mujoco.mju_mulQuat(position[3:7], turn, position[3:7].copy())
        position[:2] += shift
    return torch.from_numpy(qpos), torch.from_numpy(qvel)
