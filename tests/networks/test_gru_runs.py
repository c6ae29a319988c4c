"""Runs of the recurrent policy: it remembers what it must, continues bit for bit, and acts alike as ONNX."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from tensordict import TensorDict

from envs_gpu.tasks import TASKS
from envs_gpu.tasks.inverted_pendulum import InvertedPendulum
from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.cli.train import main
from pi_incubator.config import ExperimentConfig
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.run_folder import RunFolder
from tests.envs import ForgetfulEnv, StillEnv
from tests.learning import assert_same_tensors, last_tensors, make_algorithm, networks_with_a_state

CONFIG = str(Path(__file__).parents[2] / "configs" / "ppo" / "cartpole_balance.yaml")
CPU = torch.device("cpu")
EPISODE = 6
WITH_STATE = networks_with_a_state()
TINY = [
    "network.name=gru",
    "network.hidden_sizes=[16]",
    "env.num_envs=4",
    "algorithm.horizon=16",
    "algorithm.minibatch_size=32",
    "algorithm.num_epochs=2",
    "algorithm.lr_schedule=adaptive",  # a linear one depends on the total
    "env.episode_length_s=0.25",  # so that episodes end within rollouts
    "training.total_steps=256",
    "checkpoint.save_every=2",
    "deployment.export=none",
    "evaluation.curve=false",
]
BRIEF = ["tracking.backend=none", "evaluation.num_episodes=2", "evaluation.video=false"]


class CueEnv(ForgetfulEnv):
    """A number, -1 or 1, is shown at the first step; what counts is to say it at the last one."""

    def __init__(self, num_envs):
        limits = ((-2.0,), (2.0,))
        self.spec = EnvSpec("cue", num_envs, {"policy": 2}, 1, *limits, ("hinge",), 10.0, EPISODE, CPU)
        self.reset(0)

    def reset(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.time = torch.arange(self.num_envs) % EPISODE  # they end one after the other
        self.cue = self.draw()
        self.obs = self.observe()
        return self.obs

    def draw(self):
        return torch.randint(0, 2, (self.num_envs,), generator=self.generator) * 2.0 - 1.0

    def observe(self):
        shown = torch.where(self.time == 0, self.cue, 0.0)
        return TensorDict({"policy": torch.stack((shown, self.time / EPISODE), -1)}, [self.num_envs])

    def step(self, action):
        last = self.time == EPISODE - 1
        reward = torch.where(last, (-(action[:, 0] - self.cue).square()).exp(), 0.0)
        final_obs = self.observe()
        self.time = (self.time + 1) % EPISODE
        self.cue = torch.where(last, self.draw(), self.cue)
        self.obs = self.observe()
        nobody = torch.zeros_like(last)
        return StepResult(self.obs, reward, last, nobody, final_obs, {}, nobody)


@pytest.mark.parametrize("name", ["mlp", *WITH_STATE])
def test_what_was_shown_before_can_only_be_remembered(name):
    """Who does not remember can say one of the two at best: 0.51 in the mean."""
    settings = {
        "env": {"num_envs": 64},
        "network": {"name": name, "hidden_sizes": [16]},
        "algorithm": {"horizon": 12, "minibatch_size": 192, "lr": 1e-2, "lr_schedule": "constant"},
    }
    cfg = ExperimentConfig.model_validate(settings)
    torch.manual_seed(0)
    env = CueEnv(64)
    ppo = make_algorithm(cfg, env)
    for _ in range(20):
        ppo.collect()
        ppo.update()
    # The first episodes of some worlds have no beginning.
    returns = evaluate(env, ppo.policy, 4 * 64, seed=1).episodes["return"].view(64, 4)[:, 1:]
    assert (returns.mean() > 0.9) == (name in WITH_STATE)
    assert name in WITH_STATE or returns.mean() < 0.6


def train(tmp_path, name, *overrides):
    place = [f"experiment.output_dir={tmp_path}", f"experiment.name={name}"]
    main(["--config", CONFIG, *TINY, *BRIEF, *place, *overrides])
    return RunFolder(tmp_path / name)


@pytest.mark.parametrize("overlap", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_run_continues_bit_for_bit(tmp_path, overlap):
    overlap = f"training.overlap={overlap}"
    whole = last_tensors(train(tmp_path, "whole", overlap))
    train(tmp_path, "halves", overlap, "training.total_steps=128")
    halves = last_tensors(train(tmp_path, "halves", overlap))
    assert whole["rollout.state"].shape == (4, 32)
    assert whole["rollout.state"].abs().max() > 0
    assert_same_tensors(whole, halves)


@pytest.mark.slow
def test_a_compiled_run_continues_bit_for_bit(tmp_path):
    whole = last_tensors(train(tmp_path, "whole", "compute.compile=on"))
    train(tmp_path, "halves", "compute.compile=on", "training.total_steps=128")
    halves = last_tensors(train(tmp_path, "halves", "compute.compile=on"))
    assert_same_tensors(whole, halves)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A policy whose normalizer has seen data, and its form for ONNX as a file."""
    path = tmp_path_factory.mktemp("gru") / "policy.onnx"
    cfg = ExperimentConfig.model_validate({"network": {"name": "gru", "hidden_sizes": [32, 16]}})
    limits = ((-1.0,) * 3, (1.0,) * 3)
    spec = EnvSpec("toy", 4, {"policy": 7, "critic": 9}, 3, *limits, ("a", "b", "c"), 50.0, 100, CPU)
    torch.manual_seed(0)
    policy = make_algorithm(cfg, StillEnv(spec)).policy
    policy.normalizer.observe({"policy": 3.0 + 2.0 * torch.randn(100, 7), "critic": torch.randn(100, 9)})
    policy.normalizer.commit()
    with torch.no_grad():
        policy.head[-1].weight.mul_(300.0)  # some actions reach the limits
    batch = torch.export.Dim("batch")
    example = (torch.zeros(2, 7), torch.zeros(2, policy.state_width))
    program = torch.onnx.export(
        policy.as_onnx().eval(),
        example,
        input_names=["observation", "hidden"],
        output_names=["action", "hidden_out"],
        dynamic_shapes=({0: batch}, {0: batch}),
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    program.save(path, external_data=False)
    return policy, path


@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_step_by_step(exported, batch):
    policy, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    hidden, state = torch.zeros(batch, 32).numpy(), policy.initial_state(batch)
    random, saturated = torch.Generator().manual_seed(1), False
    for _ in range(100):
        observation = 3.0 + 2.0 * torch.randn(batch, 7, generator=random)
        inputs = {"observation": observation.numpy(), "hidden": hidden}
        action, hidden = session.run(["action", "hidden_out"], inputs)
        with torch.no_grad():
            expected, state = policy.mean({"policy": observation}, state)
        torch.testing.assert_close(torch.from_numpy(action), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(hidden), state, rtol=0, atol=1e-5)
        saturated |= bool((abs(action) == 1.0).any())
    assert saturated


def test_the_graph_is_plain_onnx(exported):
    model = onnx.load(exported[1])
    assert {(entry.domain, entry.version) for entry in model.opset_import} <= {("", 18)}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


class BlindPendulum(InvertedPendulum):
    """Positions alone: how fast they change is to be remembered."""

    def observation(self):
        return {"policy": super().observation()["policy"][:2]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_a_pole_is_balanced_without_velocities(tmp_path, monkeypatch, name):
    """The largest return is 1000."""
    monkeypatch.setitem(TASKS._entries, "blind_pendulum", BlindPendulum)
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=blind", "env.name=blind_pendulum"]
    network = [
        f"network.name={name}",
        "training.total_steps=150000",
        "deployment.export=none",
        "evaluation.curve=false",
    ]
    main(["--config", CONFIG, *network, *BRIEF, *place])
    score = json.loads((tmp_path / "blind" / "evaluation.json").read_text())["return"]["mean"]
    assert score > 900 if name == "gru" else score < 500
