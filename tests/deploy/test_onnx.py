"""The exported file acts like the policy, says what it is, and is one file."""

import onnx
import onnxruntime
import pytest
import torch

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.onnx import check_onnx, export_checked, export_onnx, load_onnx
from pi_incubator.errors import UserError
from pi_incubator.networks import make_network

SPEC = EnvSpec(
    name="reach",
    num_envs=4,
    obs_dims={"policy": 7},
    action_dim=3,
    action_low=(-1.0, -0.5, -2.0),
    action_high=(1.0, 0.5, 2.0),
    joint_names=("hip", "knee", "ankle"),
    control_hz=50.0,
    max_episode_steps=100,
    device=torch.device("cpu"),
)
CFG = ExperimentConfig()


def make_policy(scale):
    """A network whose normalizer has seen data; a large `scale` drives its actions into the limits."""
    torch.manual_seed(0)
    policy = make_network(CFG.network, SPEC)
    policy.gather({"policy": 3.0 + 2.0 * torch.randn(100, 7)})
    policy.commit()
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.mul_(scale)
    return policy


@pytest.fixture(scope="module")
def observations():
    return 3.0 + 2.0 * torch.randn(100, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    policy = make_policy(scale=3.0)
    path = tmp_path_factory.mktemp("export") / "policy.onnx"
    export_onnx(policy, SPEC, path, opset=18, metadata={"git_commit": "abc"})
    return policy, path


@pytest.mark.parametrize("batch", [1, 17])
def test_parity_at_any_batch(exported, observations, batch):
    policy, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (action,) = session.run(["action"], {"observation": observations[:batch].numpy()})
    expected = policy.mean_action({"policy": observations[:batch]}).detach()
    assert action.shape == (batch, 3)
    torch.testing.assert_close(torch.from_numpy(action), expected, atol=1e-6, rtol=0)


def test_actions_stay_within_the_limits(observations, tmp_path):
    path = tmp_path / "policy.onnx"
    export_onnx(make_policy(scale=50.0), SPEC, path, opset=18, metadata={})
    action = load_onnx(path)({"policy": observations})
    low, high = torch.tensor(SPEC.action_low), torch.tensor(SPEC.action_high)
    assert ((action >= low) & (action <= high)).all()
    assert (action == high).any()


def test_metadata(exported):
    _, path = exported
    model = onnx.load(path)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "task": "reach",
        "joint_names": "hip,knee,ankle",
        "action_low": "-1,-0.5,-2",
        "action_high": "1,0.5,2",
        "control_hz": "50",
        "observation": "policy",
        "git_commit": "abc",
    }
    assert model.opset_import[0].version == 18


def test_one_file_that_names_no_local_path(exported):
    _, path = exported
    assert list(path.parent.iterdir()) == [path]
    assert b".py" not in path.read_bytes()


def test_the_exporter_is_quiet_and_leaves_the_policy_alone(observations, tmp_path, capfd):
    policy = make_policy(scale=1.0).train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    difference = export_checked(CFG, policy, SPEC, observations, tmp_path / "policy.onnx")
    assert 0 <= difference <= CFG.deployment.tolerance
    assert capfd.readouterr() == ("", "")
    assert policy.training
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    properties = {entry.key for entry in onnx.load(tmp_path / "policy.onnx").metadata_props}
    assert {"config_sha256", "pi_incubator_version", "task", "control_hz"} <= properties


def test_another_policy_is_told_apart(exported, observations):
    _, path = exported
    with pytest.raises(UserError, match="actions differ from the policy's by"):
        check_onnx(path, make_policy(scale=1.0), observations, tolerance=1e-5)


def test_nan_is_no_agreement(exported, observations):
    policy, path = exported
    with pytest.raises(UserError, match="differ"):
        check_onnx(path, policy, observations.index_fill(1, torch.tensor([0]), torch.nan), tolerance=1e-5)


def test_a_file_that_cannot_be_written_or_read_is_one_line(exported, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        export_onnx(exported[0], SPEC, tmp_path / "missing" / "policy.onnx", opset=18, metadata={})
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be run by onnxruntime"):
        load_onnx(tmp_path / "broken.onnx")
