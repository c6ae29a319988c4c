"""The contract says what the file is, in the file and beside it, and the runtime agrees."""

import hashlib
import json

import onnx
import pytest

from envs_gpu.robots import get_robot
from pi_incubator.deploy.contract import normalizer_hash, short, to_json
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
