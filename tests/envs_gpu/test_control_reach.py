"""Motors that are far too strong are used in part; the others, and servos, in full."""

import mujoco
import numpy as np
import pytest

from envs_gpu.scene.control_reach import MOST_SHIFT_M, MOST_TURN_RAD, narrow_motors

DT_S = 0.02
ARM = """
<mujoco><option timestep="0.002" gravity="0 0 {gravity}"/><worldbody>
<body><joint name="elbow" axis="0 1 0"/><geom type="capsule" size=".05" fromto="0 0 0 .3 0 0" mass="1"/>
 <body pos=".3 0 0"><joint name="wrist" type="{wrist}" axis="1 0 0"/><geom size=".02" mass=".1"/></body>
</body></worldbody>
<actuator><motor name="elbow" joint="elbow" ctrlrange="-20 20"/>{actuator}</actuator></mujoco>"""
STRONG = '<motor name="wrist" joint="wrist" ctrlrange="-20 10"/>'


def reach(actuator=STRONG, wrist="hinge", gravity=0, as_given=(), ctrl=0.0, arm=ARM):
    """The model as the file has it, its control ranges `[2, nu]` after narrowing, and the notes."""
    spec = mujoco.MjSpec.from_string(arm.format(actuator=actuator, wrist=wrist, gravity=gravity))
    model = spec.compile()
    data = mujoco.MjData(model)
    data.ctrl[1] = ctrl
    notes = narrow_motors(spec, model, data, DT_S, as_given)
    return model, spec.compile().actuator_ctrlrange.T, notes


def speed_after(model, index, ctrl, held=0.0):
    """The largest speed a control step after rest."""
    data = mujoco.MjData(model)
    data.ctrl[1] = held
    data.ctrl[index] = ctrl
    for _ in range(10):
        mujoco.mj_step(model, data)
    return np.abs(data.qvel).max()


def test_a_motor_that_is_too_strong_is_used_in_part():
    """0.16 kg cm², and 20 Nm: in full it gains 25,000 rad/s in a control step."""
    model, ends, notes = reach()
    assert speed_after(model, 1, -20.0) > 10 * MOST_TURN_RAD / DT_S
    low, high = ends[:, 1]
    assert -20 < low < 0 < high < 10
    for end in (low, high):
        speed = speed_after(model, 1, end) * DT_S
        assert 0.4 * MOST_TURN_RAD < speed <= MOST_TURN_RAD
    (note,) = notes
    assert "wrist [" in note
    assert "instead of [-20, 10]" in note
    assert "env.limits" in note


def test_a_motor_that_makes_c_begin_anew_is_used_in_part():
    """C resets a state that blew up, and its speeds of zero say nothing."""
    model, ends, _ = reach('<motor name="wrist" joint="wrist" ctrlrange="-1e9 1e9"/>')
    assert speed_after(model, 1, 1e9) < 1.0  # it was reset
    assert speed_after(model, 1, ends[1, 1]) * DT_S <= MOST_TURN_RAD


def test_a_motor_that_fits_is_used_in_full():
    _, ends, _ = reach()
    assert ends[:, 0].tolist() == [-20.0, 20.0]


def test_a_slide_is_judged_by_its_way():
    model, ends, _ = reach('<motor name="wrist" joint="wrist" ctrlrange="-900 900"/>', wrist="slide")
    assert 0.4 * MOST_SHIFT_M < speed_after(model, 1, ends[1, 1]) * DT_S <= MOST_SHIFT_M


def test_what_gravity_does_is_not_the_motors():
    """The hold counts as rest, however fast the robot falls from there."""
    _, in_space, _ = reach()
    _, falling, _ = reach(gravity=-9.81)
    np.testing.assert_allclose(in_space, falling, rtol=0.01)


@pytest.mark.parametrize(
    "actuator",
    [
        '<position name="wrist" joint="wrist" kp="1000" ctrlrange="-2 2"/>',
        '<velocity name="wrist" joint="wrist" kv="10" ctrlrange="-2000 2000"/>',
        '<general name="wrist" joint="wrist" dyntype="filter" dynprm=".1" ctrlrange="-900 900"/>',
    ],
)
def test_servos_and_filtered_motors_keep_their_range(actuator):
    model, ends, notes = reach(actuator)
    assert ends[:, 1].tolist() == model.actuator_ctrlrange[1].tolist()
    assert notes == ()


def test_a_range_that_the_user_gave_stays():
    _, ends, notes = reach(as_given={"wrist"})
    assert ends[:, 1].tolist() == [-20.0, 10.0]
    assert notes == ()


def test_a_control_that_holds_the_pose_from_outside_its_range_counts_as_its_end():
    _, ends, _ = reach(ctrl=50.0)
    assert ends[0, 1] < ends[1, 1] == 10.0


def test_a_robot_that_blows_up_by_itself_keeps_its_ranges():
    driven = ARM.replace('axis="0 1 0"', 'axis="0 1 0" damping="-900"')
    _, ends, notes = reach(gravity=-9.81, arm=driven)
    assert ends[:, 1].tolist() == [-20.0, 10.0]
    assert notes == ()


def test_nobody_hears_of_trials_that_blow_up(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    reach('<motor name="wrist" joint="wrist" ctrlrange="-1e9 1e9"/>')
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_range_is_narrowed_towards_what_holds_the_pose():
    model, ends, _ = reach(ctrl=5.0)
    assert ends[0, 1] < 5.0 < ends[1, 1] < 10
    gained = speed_after(model, 1, ends[1, 1], held=5.0) - speed_after(model, 1, 5.0)
    assert gained * DT_S <= MOST_TURN_RAD
