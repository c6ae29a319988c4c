"""The exported graph, given what a robot measures, does what policy and env do together."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from pi_incubator.deploy.artifact import Source
from pi_incubator.deploy.graph import sensor_readings
from pi_incubator.deploy.program import to_onnx
from pi_incubator.deploy.record import action_error, check_parity
from pi_incubator.deploy.session import ExportedPolicy, Session, action_behind, load_exported, open_session
from pi_incubator.errors import UserError
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.registry import exporters
from pi_incubator.runtime import Policy
from tests.learning import networks_with_a_state

WITH_STATE = networks_with_a_state()
MEMORY = ["last_action", "history", "seen"]
CASES = [
    ("ant", 1, "mlp", []),
    ("hopper", 3, "mlp", ["history", "seen"]),
    ("go1_velocity", 1, "mlp", ["last_action"]),
    ("go1_velocity", 4, "mlp", MEMORY),
    ("hold_pose", 1, "mlp", ["last_action"]),
    ("go1_velocity", 2, "gru", [*MEMORY, "hidden"]),
    *(("go1_velocity", 1, network, ["last_action", "hidden"]) for network in ("lstm", "mamba", "mingru")),
    pytest.param("go1_velocity", 1, "transformer", ["last_action", "hidden"], marks=pytest.mark.slow),
    pytest.param("g1_velocity", 2, "mlp", MEMORY, marks=pytest.mark.slow),
    pytest.param("go1_velocity_rough", 1, "mlp", ["last_action"], marks=pytest.mark.slow),
    pytest.param("go1_getup", 2, "mlp", MEMORY, marks=pytest.mark.slow),
    pytest.param("yam_lift", 1, "mlp", ["last_action"], marks=pytest.mark.slow),
    pytest.param("cartpole_balance", 1, "gru", ["hidden"], marks=pytest.mark.slow),
    pytest.param("humanoid", 1, "mlp", [], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("task", "history", "network", "states"), CASES)
def test_rollouts_of_the_env_through_the_file(source_of, task, history, network, states):
    source = source_of(task, history, network)
    recording, targets = source.recording, source.env.interface().targets
    assert recording.begins.sum() > recording.begins.shape[1], "no episode ended: nothing was forgotten"
    assert np.abs(recording.action).max() > 0.1
    artifact = source.artifact()
    assert artifact.action_error <= 1e-5
    session = Session(artifact.model)
    assert [name.removesuffix("_in") for name in session.widths] == states
    if states:  # a memory that outlives its episode is seen
        forgets_nothing = replace(recording, begins=np.zeros_like(recording.begins))
        assert action_error(session, forgets_nothing, targets) > 1e-4


@pytest.mark.parametrize("network", [*WITH_STATE, "encoders"])
def test_networks_run_in_the_runtime(source_of, tmp_path, network):
    """Step by step through the ends of episodes, a robot's runtime does what the policy did."""
    source = source_of("t_maze", 1, network)
    recording, policy = (
        source.recording,
        Policy.load(exporters.get("onnx")(source.artifact(), tmp_path / "x")),
    )
    assert recording.begins[1:, 0].any()
    for readings, begins, action in zip(
        recording.readings[:, 0], recording.begins[:, 0], recording.action[:, 0], strict=True
    ):
        if begins:
            policy.reset()
        np.testing.assert_allclose(policy.step(readings), action, atol=1e-5)
        assert policy.flags == 0


@pytest.mark.parametrize(
    ("network", "state"), [("mlp", "last_action"), ("gru", "last_action"), ("gru", "hidden")]
)
def test_what_was_rounded_does_not_come_back(source_of, monkeypatch, network, state):
    """A policy may amplify what it remembers: errors count at the step that makes them, and only there."""
    source = source_of("go1_velocity", 2 if network == "gru" else 1, network)
    session, targets, steps = Session(source.artifact().model), source.env.interface().targets, []
    step = session.step

    def drift(readings):
        target = step(readings)
        steps.append(np.abs(session.states[f"{state}_in"] - source.recording.remembered(len(steps))[state]))
        session.states[f"{state}_in"] += 1e-3
        return target

    monkeypatch.setattr(session, "step", drift)
    assert action_error(session, source.recording, targets) == pytest.approx(1e-3, rel=0.02)
    assert np.max(steps) < 1e-5


def test_the_targets_are_what_the_env_sends_to_its_motors(walker):
    source, artifact = walker
    env, session, interface = source.env, Session(artifact.model), source.env.interface()
    obs = env.reset(11)
    for _ in range(20):
        target = session.step(sensor_readings(obs["policy"], interface).numpy())
        result = env.step(source.policy.mean(obs, source.policy.initial_state(env.num_envs))[0].detach())
        obs, goes_on = result.obs, ~(result.terminated | result.truncated).numpy()
        session.restart(~goes_on)
        sent = env.physics.state.ctrl.float().numpy()  # of a world that began anew: zeros
        np.testing.assert_allclose(target[goes_on], sent[goes_on], atol=1e-5)
    assert (target >= interface.targets.low.numpy()).all()
    assert (target <= interface.targets.high.numpy()).all()


@pytest.mark.parametrize("batch", [2, 17])
def test_any_batch_and_every_robot_alone(source_of, batch):
    model = source_of("go1_velocity", 4, "mlp").artifact().model
    together, alone = Session(model), Session(model)
    readings = np.random.default_rng(0).normal(size=(3, batch, 33)).astype(np.float32)
    for row in readings:
        np.testing.assert_allclose(together.step(row)[:1], alone.step(row[:1]), atol=1e-5)


def test_the_file_declares_its_seam(source_of):
    session = open_session(source_of("go1_velocity", 4, "mlp").artifact().model, "policy.onnx")
    nodes = [*session.get_inputs(), *session.get_outputs()]
    assert [(node.name, node.shape[1]) for node in nodes] == [
        ("observation", 33),
        ("last_action_in", 12),
        ("history_in", 180),
        ("seen_in", 1),
        ("target", 12),
        ("last_action_out", 12),
        ("history_out", 180),
        ("seen_out", 1),
    ]
    assert {node.type for node in nodes} == {"tensor(float)"}
    assert all(isinstance(node.shape[0], str) for node in nodes), "the batch is not free"


def test_clips_of_the_task_are_inside(source_of):
    """Ant's `observe` clips contact forces; a robot's sensors do not."""
    source = source_of("ant", 1, "mlp")
    session, readings = Session(source.artifact().model), source.recording.readings[-1].copy()
    readings[:, 27:] = 5.0
    clipped = readings.copy()
    clipped[:, 27:] = 1.0
    np.testing.assert_array_equal(session.step(readings), session.step(clipped))


def test_evaluation_of_the_file_is_that_of_the_policy(source_of):
    source = source_of("go1_velocity", 4, "mlp")
    exported = ExportedPolicy(Session(source.artifact().model), source.env.interface())
    there, here = (evaluate(source.env, policy, 8, 5).episodes for policy in (source.policy, exported))
    torch.testing.assert_close(here["length"], there["length"])
    torch.testing.assert_close(here["return"], there["return"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("task", "num_actions"), [("go1_velocity", 12), ("hold_pose", 3)])
def test_the_action_behind_a_target(source_of, task, num_actions):
    targets = source_of(task, 1, "mlp").env.interface().targets
    action = torch.linspace(-0.2, 0.2, 9).unsqueeze(-1).expand(9, num_actions)
    torch.testing.assert_close(action_behind(targets.control(action), targets), action, atol=1e-6, rtol=0)


def test_one_file_that_names_no_local_path_and_no_line(walker):
    model = onnx.load_from_string(walker[1].model)
    for trace in (b".py", b"/tmp", b"/home", b"/root"):
        assert trace not in walker[1].model
    assert not any(weight.external_data for weight in model.graph.initializer)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]


def test_the_exporter_is_quiet_and_leaves_the_policy_alone(source_of, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = source_of("ant", 1, "mlp")
    policy = source.policy.train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    for precision in ("fp32", "fp16", "int8"):
        Source.artifact(source, precision)
    assert capfd.readouterr() == ("", "")
    assert policy.training
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_another_policy_is_told_apart(source_of):
    source = source_of("ant", 1, "mlp")
    model, targets = source.artifact().model, source.env.interface().targets
    other = replace(source.recording, action=-source.recording.action)
    with pytest.raises(UserError, match="actions differ from the policy's by"):
        check_parity(model, "policy.onnx", other, targets, 1e-5)


def test_nan_is_no_agreement(source_of):
    source = source_of("ant", 1, "mlp")
    readings = source.recording.readings.copy()
    readings[3, 0, 5] = np.nan
    broken, model = replace(source.recording, readings=readings), source.artifact().model
    with pytest.raises(UserError, match="differ"):
        check_parity(model, "policy.onnx", broken, source.env.interface().targets, 1e-5)


def test_a_policy_of_what_no_robot_measures_is_refused(source_of, monkeypatch):
    source = source_of("go1_velocity", 1, "mlp")
    monkeypatch.setattr(source.policy, "groups", ("critic",))
    with pytest.raises(UserError, match="'critic', which no robot measures; distil it"):
        Source.artifact(source)


def test_a_file_of_another_robot_or_none_is_one_line(source_of, tmp_path):
    source, file = source_of("ant", 1, "mlp"), tmp_path / "policy.onnx"
    file.write_bytes(source.artifact().model)
    with pytest.raises(UserError, match="takes observations of 105 values, the run's robot gives 33"):
        load_exported(file, source_of("go1_velocity", 1, "mlp").env.interface())
    with pytest.raises(UserError, match="cannot be read"):
        load_exported(tmp_path / "missing.onnx", source.env.interface())
    other = to_onnx(torch.nn.Linear(3, 2), (torch.zeros(2, 3),), ("observation",), ("action",), 18)
    with pytest.raises(UserError, match="gives 'action' where a bundle's file gives 'target'"):
        Session(other.SerializeToString())


def test_a_file_that_cannot_be_run_is_one_line():
    with pytest.raises(UserError, match=r"policy\.onnx: cannot be run by onnxruntime"):
        Session(b"no model")
