"""Discrete actions: every algorithm that takes them learns, continues bit for bit, and is exported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tensordict import TensorDict

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec
from pi_incubator.algorithms.sac import SAC
from pi_incubator.cli import eval as eval_command
from pi_incubator.cli import export as export_command
from pi_incubator.cli._trained import load_trained
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.models import UNIONS
from pi_incubator.policies.categorical import CategoricalPolicy
from pi_incubator.run import run
from pi_incubator.run_folder import RunFolder, open_run
from pi_incubator.runtime import Policy as RuntimePolicy
from tests.envs import StillEnv
from tests.learning import assert_same_tensors, last_tensors, make_algorithm

CONFIG = Path(__file__).parents[2] / "configs" / "ppo" / "gymnasium_cartpole.yaml"
CPU = torch.device("cpu")
ALWAYS = [
    "env.num_envs=4",
    "training.total_steps=128",
    "checkpoint.save_every=1",
    "compute.compile=off",
    "tracking.backend=none",
    "evaluation.num_episodes=2",
    "deployment.num_check_observations=50",
    "network.hidden_sizes=[8]",
    "algorithm.horizon=16",
]
ON_POLICY = ["algorithm.minibatch_size=32"]
REPLAY = ["algorithm.batch_size=16", "algorithm.learning_starts=32", "algorithm.buffer_size=128"]
OWN = {
    "ppo": ON_POLICY,
    "ppo_fused": [*ON_POLICY, "algorithm.loss=fused"],
    "a2c": ["algorithm.name=a2c", *ON_POLICY],
    "grpo": ["algorithm.name=grpo", *ON_POLICY, "algorithm.group_size=2", "algorithm.kl_coef=0.1"],
    "sac": ["algorithm.name=sac", *REPLAY, "algorithm.replay=prioritized", "algorithm.updates_per_step=0.25"],
}


def train(folder: Path, kind: str, name: str, *settings: str) -> RunFolder:
    place = [f"experiment.output_dir={folder}", f"experiment.name={name}"]
    run(CONFIG, [*ALWAYS, *OWN[kind], *place, *settings])
    return RunFolder(folder / name)


def test_every_algorithm_of_discrete_actions_is_tested_here() -> None:
    taking = {name for name, member in UNIONS["algorithm"].members.items() if member.takes_choices}
    assert taking == OWN.keys() - {"ppo_fused"}


@pytest.mark.parametrize("kind", OWN)
def test_it_learns_and_continues_bit_for_bit(tmp_path: Path, kind: str) -> None:
    settings = ["deployment.export=none", "evaluation.curve=false"]
    if kind != "sac":
        settings.append("algorithm.lr_schedule=constant")
    whole = train(tmp_path, kind, "whole", *settings)
    train(tmp_path, kind, "halves", "training.total_steps=64", *settings)
    halves = train(tmp_path, kind, "halves", *settings)
    assert_same_tensors(last_tensors(halves), last_tensors(whole))
    before, after = (load_file(path / "policy.safetensors") for path in (whole.saved()[0], whole.saved()[-1]))
    assert not torch.equal(before["head.0.weight"], after["head.0.weight"])


def test_the_exported_policy_takes_the_most_probable_choice(tmp_path: Path) -> None:
    """The graph, the runtime on a robot, and the commands that judge and export a run agree."""
    folder = train(tmp_path, "ppo", "exported")
    cfg, opened = open_run(str(folder.path))
    env, policy, _ = load_trained(cfg, opened, 4)
    assert isinstance(policy, CategoricalPolicy)
    observations = 3.0 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, _ = policy.encoder(policy.normalizer["policy"](observations), torch.zeros(200, 0))
        expected = torch.distributions.Categorical(logits=policy.head(features)).probs.argmax(-1)
    assert 20 < expected.sum() < 180
    out = tmp_path / "bundle"
    assert export_command.main([str(folder.path), "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(out / "policy.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    on_robot = RuntimePolicy.load(out, allow_failed_gates=True)
    for observation, choice in zip(observations.numpy(), expected.tolist(), strict=True):
        (action,) = session.run(None, {name: observation[None]})
        assert action.tolist() == [[float(choice)]]
        assert on_robot.step(observation).tolist() == [float(choice)]
    results = tmp_path / "results.json"
    assert eval_command.main([str(folder.path), "--onnx", "--json", str(results)]) in (0, None)
    assert json.loads(results.read_text())["return"] == json.loads(folder.evaluation.read_text())["return"]
    env.close()


B, D, K = 32, 3, 4
SPEC = EnvSpec("toy", 4, {"policy": D}, 1, (0.0,), (K - 1.0,), ("a",), 50.0, 100, CPU, num_choices=K)
SETTINGS = {"name": "sac", "gamma": 0.9, "initial_temperature": 0.7, "entropy_share": 0.6, "batch_size": B}


def make_sac(**algorithm: Any) -> SAC:
    torch.manual_seed(0)
    sections = {"env": {"num_envs": 4}, "network": {"hidden_sizes": [8]}}
    settings = SETTINGS | {"buffer_size": 1000} | algorithm
    sac = make_algorithm(ExperimentConfig.model_validate(sections | {"algorithm": settings}), StillEnv(SPEC))
    with torch.no_grad():
        sac.policy.head[-1].weight.mul_(100.0)
        for target in sac.target_weights:
            target.add_(0.3 * torch.randn_like(target))
    return sac


def make_minibatch() -> TensorDict:
    draw = torch.Generator().manual_seed(1)
    contents = {
        "obs.policy": torch.randn(B, D, generator=draw),
        "next.policy": torch.randn(B, D, generator=draw),
        "action": torch.randint(K, (B, 1), generator=draw).float(),
        "reward": torch.randn(B, generator=draw),
        "terminated": torch.arange(B) % 4 == 0,
        "truncated": torch.arange(B) % 4 == 1,
        "valid": torch.arange(B) % 8 != 3,
        "noise": torch.randn(B, 2, 1, generator=draw),
        "num_steps": torch.ones(B, dtype=torch.int64),
    }
    return TensorDict(contents, batch_size=[B])


def values_of(sac: SAC, params: TensorDict, observation: torch.Tensor) -> torch.Tensor:
    """What both critics say of all choices, `[2, B, K]`, in plain torch."""
    values = []
    for critic in range(2):
        one = {name: value[critic] for name, value in params.flatten_keys(".").items()}
        names = sorted(one, key=lambda name: (int(name.split(".")[-2]), "weight" not in name))
        hidden, bias, last, last_bias = (one[name] for name in names)
        features = torch.tanh(observation @ hidden.T + bias)
        values.append(features @ last.T + last_bias)
    return torch.stack(values)


def test_discrete_sac_is_the_papers() -> None:
    """Christodoulou 2019, eq. 10 to 12: sums over the choices instead of samples; broken steps count not."""
    sac, steps = make_sac(), make_minibatch()
    valid, alpha = steps["valid"], 0.7
    live = sac.loss.qvalue_network_params.data
    with torch.no_grad():
        following = sac.policy.head(steps["next.policy"]).log_softmax(-1)
        target = values_of(sac, sac.loss.target_qvalue_network_params, steps["next.policy"]).amin(0)
        value = (following.exp() * (target - alpha * following)).sum(-1)
        goal = steps["reward"] + 0.9 * torch.where(steps["terminated"], 0.0, value)
        chosen = values_of(sac, live, steps["obs.policy"])[:, torch.arange(B), steps["action"].long()[:, 0]]
        expected = (chosen - goal).square().sum(0)[valid].mean()
    _, report = sac._critic_gradients(steps)
    torch.testing.assert_close(report[0], expected, rtol=1e-4, atol=1e-5)

    log_prob = sac.policy.head(steps["obs.policy"]).log_softmax(-1)
    smaller = values_of(sac, live, steps["obs.policy"]).amin(0)
    loss = (log_prob.exp() * (alpha * log_prob - smaller)).sum(-1)[valid].mean()
    entropy = -(log_prob.exp() * log_prob).sum(-1).detach()
    of_temperature = (entropy[valid] - 0.6 * math.log(K)).mean()
    gradients, report = sac._actor_gradients(steps)
    torch.testing.assert_close(report[0], loss.detach(), rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(loss, list(sac.policy.head.parameters()))
    for gradient, other in zip(gradients[:-1], ours, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradients[-1], of_temperature, rtol=1e-4, atol=1e-5)


def test_random_choices_are_equally_likely() -> None:
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    action = make_sac().policy.random_action(noise)
    share = torch.bincount(action.long().squeeze(-1)) / len(action)
    torch.testing.assert_close(share, torch.full((K,), 1 / K), rtol=0, atol=0.02)


def test_the_entropy_of_the_other_kind_of_actions_is_refused() -> None:
    with pytest.raises(SettingError, match=r"target_entropy = -2.0: has no effect on toy, .* discrete"):
        make_sac(target_entropy=-2.0)
