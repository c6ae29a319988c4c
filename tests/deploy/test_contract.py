"""The contract says what the file is, in the file and beside it, and the runtime agrees."""

import hashlib
import json

import onnx
import pytest
import torch

from envs_gpu.robots import get_robot
from pi_incubator.algorithms import make_policy
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.artifact import Source
from pi_incubator.deploy.contract import Origin, normalizer_hash, short, to_json
from pi_incubator.deploy.record import record
from pi_incubator.envs import evaluation_env
from pi_incubator.layers.normalizer import NoNormalizer
from pi_incubator.runtime.contract import check_contract


@pytest.fixture(scope="module")
def contract(walker):
    return json.loads(walker[1].contract_json)


def test_the_runtime_takes_it(walker, contract):
    checked = check_contract(contract)
    assert (checked.observation_width, checked.num_targets) == (33, 12)
    assert checked.raw == walker[1].contract


def test_what_a_robot_must_know(contract):
    robot = get_robot("go1")
    assert contract["control_hz"] == 50.0
    assert contract["states"] == [{"name": "last_action", "width": 12}]
    assert [(term["name"], term["width"], term["kind"]) for term in contract["observation"]["terms"]] == [
        ("projected_gravity", 3, "sensor"),
        ("angular_velocity", 3, "sensor"),
        ("command", 3, "command"),
        ("joint_position", 12, "sensor"),
        ("joint_velocity", 12, "sensor"),
    ]
    assert contract["commands"] == ["forward_m_s", "sideways_m_s", "turn_rad_s"]
    for joint, safe in zip(contract["joints"], contract["safe_target"], strict=True):
        motor = robot.motor(joint["name"])
        assert (joint["stiffness"], joint["damping"]) == (motor.stiffness, motor.damping)
        assert joint["default_position_rad"] == robot.default_position(joint["name"]) == safe
        assert joint["action_scale"] == 0.5
        assert joint["target_low"] < safe < joint["target_high"]


def test_where_it_comes_from(contract, walker):
    normalizer = walker[0].policy.normalizer["policy"]
    moments = normalizer.mean.numpy().tobytes() + normalizer.std.numpy().tobytes()
    assert contract["normalizer_sha256"] == hashlib.sha256(moments).hexdigest()
    lineage = ("config_sha256", "git_commit", "git_dirty", "training_return")
    assert [contract[key] for key in lineage] == ["c" * 64, "0123abc", False, 12.25]
    assert contract["gates"] == {}


SHARED_JOINTS = """<mujoco><worldbody><body pos="0 0 1">
  <joint name="ball" type="ball"/><geom type="capsule" fromto="0 0 0 .2 0 0" size=".02"/>
  <body pos=".2 0 0"><joint name="knee" axis="0 1 0"/><geom size=".1"/></body></body></worldbody>
<actuator><motor name="x" joint="ball" gear="1 0 0"/><motor name="y" joint="ball" gear="0 1 0"/>
  <motor joint="ball" gear="0 0 1"/><position name="servo" joint="knee" kp="2"/>
  <damper name="damper" joint="knee" kv="1" ctrlrange="0 1"/>
  <general name="knee_servo" tendon="t"/></actuator>
<tendon><fixed name="t"><joint joint="knee" coef="1"/></fixed></tendon>
<default><general ctrlrange="-1 1"/>
  <motor ctrlrange="-1 1"/><position ctrlrange="-1 1"/></default></mujoco>"""


def test_joints_that_several_actuators_drive_have_names_of_their_own(tmp_path):
    """The runtime refuses a contract in which two joints have one name."""
    path = tmp_path / "robot.xml"
    path.write_text(SHARED_JOINTS)
    cfg = ExperimentConfig.model_validate(
        {"env": {"name": "hold_pose", "model": str(path)}, "network": {"hidden_sizes": [8]}}
    )
    env = evaluation_env(cfg, 2, torch.device("cpu"))
    policy = make_policy(cfg, env.spec)
    source = Source(
        cfg, env, policy, Origin("c" * 64, "d" * 64, None, None, None), record(env, policy, 20, 7)
    )
    contract = check_contract(json.loads(source.artifact().contract_json))
    names = [joint.name for joint in contract.joints]
    assert names[:5] == ["ball_x", "ball_y", "ball_actuator_2", "knee_servo", "knee_damper"]
    assert names == list(env.spec.joint_names)
    assert len(set(names)) == 6
    assert contract.joints[3].stiffness == 2


def test_a_motor_has_neither_gains_nor_a_pose(source_of):
    contract = source_of("ant", 1, "mlp").artifact().contract
    for joint in contract["joints"]:
        assert (joint["stiffness"], joint["damping"], joint["default_position_rad"]) == (None, None, None)
    assert contract["safe_target"] == [0.0] * 8
    assert contract["states"] == []


def test_the_file_holds_the_contract_and_mjlabs_keys(walker, contract):
    model = onnx.load_from_string(walker[1].model)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    inside = json.loads(properties.pop("contract"))
    assert inside == {key: value for key, value in contract.items() if key not in ("onnx", "gates")}
    assert properties.keys() == {
        "joint_names",
        "joint_stiffness",
        "joint_damping",
        "default_joint_pos",
        "command_names",
        "observation_names",
        "action_scale",
    }
    assert properties["joint_names"].split(",") == [joint["name"] for joint in contract["joints"]]
    assert properties["default_joint_pos"].startswith("0.0,0.9,-1.8,")
    assert contract["onnx"]["sha256"] == hashlib.sha256(walker[1].model).hexdigest()
    assert contract["onnx"]["opset"] == model.opset_import[0].version == 18


def test_the_text_is_stable_and_short(walker):
    text = walker[1].contract_json.decode()
    assert text == to_json(json.loads(text))
    assert text.endswith("}\n")
    assert "0.8999999" not in text
    assert short(0.1) == 0.1


def test_a_network_without_a_normalizer_has_no_hash_of_one():
    assert normalizer_hash(NoNormalizer()) is None
