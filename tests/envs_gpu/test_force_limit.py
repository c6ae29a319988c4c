"""Servos at their force limit under MJX's implicit integrator."""

import mujoco
import numpy as np
import pytest
import torch
from mujoco import mjx

from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions

CPU = torch.device("cpu")
PENDULUM = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <body>
      <joint name="hinge" armature="0.002"/>
      <geom type="capsule" size="0.01" fromto="0 0 0 0.1 0 0" mass="0.05"/>
    </body>
  </worldbody>
  <actuator><position joint="hinge" kp="20" kv="2" forcerange="-1 1"/></actuator>
</mujoco>
"""
# A target near by, which the servo reaches for with less than its limit, and two beyond it.
TARGETS = torch.tensor([[0.02], [2.0], [-2.0]])


def test_mjx_is_the_referee_at_and_below_the_limit():
    model = mujoco.MjModel.from_xml_string(PENDULUM)
    velocity = []
    for name in ("mujoco", "mjx"):
        physics = BACKENDS.get(name)(model, 3, CPU, PhysicsOptions())
        for _ in range(2):
            physics.step(TARGETS, 4)
        velocity.append(physics.state.qvel.double().clone())
    ours, theirs = velocity[1], velocity[0]
    assert theirs.abs().max() > 5.0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_mjx_still_needs_it():
    """Fails when MJX leaves out saturated servos itself: then `_force_limit` can go."""
    model = mujoco.MjModel.from_xml_string(PENDULUM)
    data = mujoco.MjData(model)
    data.ctrl[:] = 2.0
    mujoco.mj_forward(model, data)
    assert data.actuator_force == pytest.approx(1.0)
    function = mjx._src.derivative.deriv_smooth_vel
    original = getattr(function, "__wrapped__", function)
    damped = original(mjx.put_model(model), mjx.put_data(model, data))
    np.testing.assert_allclose(damped, [[-2.0]])
