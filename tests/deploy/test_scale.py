"""Exports are held to a share of each target's range, whatever its size; small ones as strictly as ever."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from envs_gpu.interface import Targets, identity_targets
from pi_incubator.algorithms import make_policy
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.artifact import Source
from pi_incubator.deploy.contract import Origin
from pi_incubator.deploy.record import check_parity, record, remembered_error, target_error
from pi_incubator.deploy.session import action_behind
from pi_incubator.envs import evaluation_env
from pi_incubator.errors import UserError

# A gripper that is told numbers from 0 to 255, and held by number 127; its motors are servos.
GRIPPER = """<mujoco><option timestep="0.004"/><worldbody><body pos="0 0 1">
  <joint name="j" axis="0 1 0" damping="2" armature="0.1"/>
  <geom type="capsule" fromto="0 0 0 0.5 0 0" size="0.05" mass="4"/></body></worldbody>
  <actuator><general joint="j" gainprm="0.2" biastype="affine" biasprm="-25 -30 -3" ctrlrange="0 255"/>
  </actuator>
  <keyframe><key ctrl="127"/></keyframe></mujoco>"""


@pytest.fixture(scope="module")
def gripper(tmp_path_factory):
    """What an export of a policy for the gripper starts from."""
    model = tmp_path_factory.mktemp("robot") / "gripper.xml"
    model.write_text(GRIPPER)
    cfg = ExperimentConfig.model_validate(
        {
            "env": {"name": "hold_pose", "model": str(model)},
            "network": {"hidden_sizes": [64, 64]},
            "compute": {"device": "cpu", "physics_threads": 1},
        }
    )
    torch.manual_seed(0)
    env = evaluation_env(cfg, 4, torch.device("cpu"))
    policy = make_policy(cfg, env.spec)
    with torch.no_grad():
        for parameter in policy.head[-1].parameters():
            parameter.mul_(100.0)  # the last layer begins small: now actions fill their range
    return Source(cfg, env, policy, Origin("c" * 64, "d" * 64, None, None, None), record(env, policy, 200, 7))


def test_a_policy_of_large_controls_is_exported(gripper):
    """The default tolerance is below one step of a float32 at 255."""
    targets = gripper.recording.action * 128 + 127
    assert np.spacing(np.float32(255)) > gripper.cfg.deployment.tolerance
    assert targets.max() > 200
    assert gripper.artifact().action_error < 1e-6


def test_a_wrong_file_of_large_controls_is_refused(gripper):
    model = onnx.load_model_from_string(gripper.artifact().model)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.ndim == 2 and min(values.shape) > 1:
            weight.CopyFrom(numpy_helper.from_array(values * np.float32(1.0001), weight.name))
    targets = gripper.env.interface().targets
    with pytest.raises(UserError, match=r"policy\.onnx: its actions differ from the policy's"):
        check_parity(model.SerializeToString(), "policy.onnx", gripper.recording, targets, 1e-5)


def targets_of(offset, scale, low, high, below=None):
    values = [None if x is None else torch.tensor([x]) for x in (offset, scale, low, high, below)]
    return Targets(*values)


@pytest.mark.parametrize(
    ("targets", "unit"),
    [
        (identity_targets(torch.tensor([-1.0]), torch.tensor([1.0])), 1.0),
        (identity_targets(torch.tensor([-0.4]), torch.tensor([0.4])), 1.0),
        (identity_targets(torch.tensor([-23.7]), torch.tensor([23.7])), 23.7),
        (identity_targets(torch.tensor([0.0]), torch.tensor([255.0])), 127.5),
        (targets_of(0.9, 0.25, -1.05, 4.5), 1.0),  # a leg's joint: what an action moves is below 1
        (targets_of(0.9, 0.25, -torch.inf, torch.inf), 1.0),
        (targets_of(127.0, 128.0, 0.0, 255.0, 127.0), 128.0),
        (targets_of(0.0, 1.0, -300.0, 300.0, 300.0), 300.0),
        (targets_of(4200.0, 0.1, 4199.9, 4200.1), 100.0),  # float32 has steps of 5e-4 there
    ],
)
def test_errors_are_measured_in_units_of_the_range(targets, unit):
    assert targets.unit.item() == pytest.approx(unit, rel=1e-3)
    action = np.zeros((3, 1), np.float32)
    wrong = targets.control(torch.from_numpy(action)).numpy().astype(np.float64) + 1e-2 * unit
    assert target_error(wrong, action, targets) == pytest.approx(1e-2, rel=1e-2)


def test_an_action_that_is_the_target_has_its_unit_and_others_have_one():
    is_target = identity_targets(torch.tensor([0.0]), torch.tensor([255.0]))
    moves_target = targets_of(127.0, 128.0, 0.0, 255.0, 127.0)
    got, wanted = np.array([[1.0]]), np.array([[0.0]])
    assert remembered_error("last_action", got, wanted, is_target) == pytest.approx(1 / 127.5)
    assert remembered_error("last_action", got, wanted, moves_target) == 1.0
    assert remembered_error("hidden", got, wanted, is_target) == 1.0


def test_a_target_that_starts_at_its_limit_has_an_action_behind_it():
    """Nothing moves it further: the smallest action that leads there is zero, not 0 / 0."""
    at_its_limit = targets_of(-1.0, 2.0, -1.0, 1.0, below=0.0)
    action = torch.tensor([[-1.0], [0.0], [0.5], [1.0]])
    behind = action_behind(at_its_limit.control(action), at_its_limit)
    torch.testing.assert_close(behind, torch.tensor([[0.0], [0.0], [0.5], [1.0]]))


def test_a_number_that_is_none_is_never_small_enough():
    targets = identity_targets(torch.tensor([0.0]), torch.tensor([255.0]))
    assert np.isnan(target_error(np.array([[np.nan]]), np.zeros((1, 1), np.float32), targets))
    assert np.isnan(remembered_error("hidden", np.array([np.nan]), np.zeros(1), targets))
