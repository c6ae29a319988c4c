"""Options of PPO do what their formulas say: bounds of the learning rate, normalized and clipped values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.make import make_env
from envs_gpu.vec_env import VecEnv
from kernels.normalize import mean_and_std
from pi_incubator.algorithms.ppo import PPO
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.run import run
from pi_incubator.run_folder import RunFolder
from tests.learning import assert_same_tensors, last_tensors, make_algorithm

NUM_ENVS, HORIZON = 8, 16
CPU = torch.device("cpu")


def make_cfg(network: dict[str, Any] | None = None, **algorithm: Any) -> ExperimentConfig:
    sizes = {"horizon": HORIZON, "minibatch_size": 64, "num_epochs": 2, "gamma": 0.9, "reward_scale": 50.0}
    env = {"name": "cartpole_balance", "num_envs": NUM_ENVS}
    sections = {"env": env, "algorithm": sizes | algorithm, "network": network or {}}
    return ExperimentConfig.model_validate(sections)


@pytest.fixture
def env() -> Iterator[VecEnv]:
    env = make_env("cartpole_balance", num_envs=NUM_ENVS, device=CPU)
    yield env
    env.close()


def make_ppo(env: VecEnv, **algorithm: Any) -> PPO:
    """The same weights every time."""
    torch.manual_seed(0)
    return make_algorithm(make_cfg(**algorithm), env, compiled=False)


def samples_of(size: int = 64) -> TensorDict:
    """Targets far from old values, so that the clip matters on both sides."""
    draw = torch.Generator().manual_seed(3)
    contents = {
        "policy": torch.randn(size, 5, generator=draw),
        "action": torch.randn(size, 1, generator=draw),
        "action_log_prob": -torch.rand(size, generator=draw),
        "advantage": torch.randn(size, 1, generator=draw),
        "value_target": torch.randn(size, 1, generator=draw),
        "state_value": torch.randn(size, 1, generator=draw),
    }
    return TensorDict(contents, batch_size=[size])


@pytest.mark.parametrize("loss", ["torchrl", "fused"])
def test_the_clipped_value_loss_is_its_formula(env: VecEnv, loss: str) -> None:
    """E[max((v - R)^2, (old + clip(v - old) - R)^2)], by both losses; without the clip it differs."""
    samples = samples_of(64)
    plain = make_ppo(env, loss=loss)
    ppo = make_ppo(env, loss=loss, clip_value_loss=True, clip_ratio=0.1, value_coef=0.7)
    old, target = samples["state_value"].double(), samples["value_target"].double()
    value = ppo.critic.head(samples["policy"]).detach().double()
    clipped = old + (value - old).clamp(-0.1, 0.1)
    expected = 0.7 * torch.maximum((value - target) ** 2, (clipped - target) ** 2).mean()
    _, report = ppo._losses(samples.clone())
    torch.testing.assert_close(report[1].double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.isclose(plain._losses(samples.clone())[1][1] / 0.5, report[1] / 0.7)


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_both_losses_clip_values_alike(env: VecEnv, state_dependent_std: bool) -> None:
    """The gradients of TorchRL's loss and of the kernel are the same."""
    gradients, network = [], {"state_dependent_std": state_dependent_std}
    for loss in ("torchrl", "fused"):
        ppo = make_ppo(env, network=network, loss=loss, clip_value_loss=True, entropy_coef=0.1)
        gradients.append(ppo._gradients(samples_of())[0])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["torchrl", "fused"])
def test_the_loss_of_a_dependent_standard_deviation_is_its_formula(env: VecEnv, loss: str) -> None:
    """Clipped surrogate, entropy and KL divergence by the distributions of torch, in float64."""
    samples = samples_of(64)
    ppo = make_ppo(env, network={"state_dependent_std": True, "init_log_std": -0.5}, loss=loss)
    ppo.policy.head[-1].weight.data.mul_(100.0)  # a head begins near zero
    features, _ = ppo.model.encode({"policy": samples["policy"]})
    mean, log_std = ppo.policy.head(features).detach().double().chunk(2, -1)
    assert log_std.std() > 0.1
    gaussian = torch.distributions.Normal(mean, log_std.clamp(-5.0, 2.0).exp())
    log_ratio = gaussian.log_prob(samples["action"].double()).sum(-1) - samples["action_log_prob"].double()
    ratio, advantage = log_ratio.exp(), samples["advantage"].squeeze(-1).double()
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    _, report = ppo._losses(samples.clone())
    expected = torch.stack((-objective, gaussian.entropy().sum(-1).mean(), (ratio - 1 - log_ratio).mean()))
    torch.testing.assert_close(report[[0, 2, 3]].double(), expected, rtol=1e-4, atol=1e-5)


def test_value_targets_are_normalized_by_all_returns_so_far(env: VecEnv) -> None:
    """Checked against float64 over two rollouts: targets, old values, and what the critic returns."""
    ppo, plain = make_ppo(env, normalize_value=True), make_ppo(env)
    seen = []
    for _ in range(2):
        ppo.collect()
        data = ppo.rollout.data.clone()
        plain.advantage(raw := data.clone())
        ppo.advantage(data)
        returns, valid = raw["value_target"].double(), raw["valid"]
        seen.append(returns[valid])
        everything = torch.cat(seen)
        mean, std = everything.mean(), everything.std(correction=0)
        assert std > 1.0  # otherwise nothing is tested
        torch.testing.assert_close(
            data["value_target"].double(), (returns - mean) / std, rtol=1e-5, atol=1e-5
        )
        old = (raw["state_value"].double() - mean) / std
        torch.testing.assert_close(data["state_value"].double(), old, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(data["advantage"], raw["advantage"])
        obs = env.obs["policy"]
        units = ppo.critic.head(ppo.policy.normalizer["policy"](obs)).squeeze(-1).double()
        value = ppo.model.value(env.obs, ppo.model.initial_state(NUM_ENVS))
        torch.testing.assert_close(value.double(), units * std + mean, rtol=1e-5, atol=1e-4)


def test_broken_steps_are_not_among_the_returns(env: VecEnv) -> None:
    """A masked step changes no moment, whatever is in it."""
    moments = []
    for broken in (0.0, 1e6):
        ppo = make_ppo(env, normalize_value=True)
        env.reset(0)
        ppo.collect()
        data = ppo.rollout.data.clone()
        data["valid"][-1] = False
        data["state_value"][-1] = data["next", "state_value"][-1] = 0.0
        data["next", "reward"][-1] = broken
        ppo.advantage(data)
        assert ppo.critic.moments is not None
        assert ppo.critic.moments[0].item() == (HORIZON - 1) * NUM_ENVS
        moments.append(ppo.critic.moments.clone())
    assert torch.equal(*moments)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_normalized_critic_learns_and_is_saved(env: VecEnv, overlap: bool) -> None:
    """The value loss falls below a variance of one, and the moments are part of the checkpoint."""
    torch.manual_seed(0)
    cfg = make_cfg(normalize_value=True, lr=3e-3, lr_schedule="constant")
    cfg = cfg.model_copy(update={"training": cfg.training.model_copy(update={"overlap": overlap})})
    ppo = make_algorithm(cfg, env, compiled=False)
    losses = []
    for _ in range(12):
        ppo.collect()
        losses.append(float(ppo.update()["loss/value"]))
    ppo.settle()
    assert losses[-1] < 0.5 < 5.0
    moments = ppo.parts()["critic"].value.state_dict()["moments"]
    assert moments[0].item() == 12 * HORIZON * NUM_ENVS
    assert mean_and_std(moments)[0].item() > 10.0  # rewards are near 50 a step


@pytest.mark.parametrize(("kl", "bound"), [(1.0, "lr_min"), (0.0, "lr_max")])
def test_the_adaptive_rate_stays_within_its_bounds(env: VecEnv, kl: float, bound: str) -> None:
    """It is divided or multiplied by 1.5 until it meets the bound that was set."""
    ppo = make_ppo(env, lr_schedule="adaptive", lr=1e-3, lr_min=4e-4, lr_max=2e-3)
    ppo._adapt_lr(torch.tensor(kl))
    torch.testing.assert_close(ppo.lr, torch.tensor(1e-3 / 1.5 if kl else 1.5e-3))
    for _ in range(9):
        ppo._adapt_lr(torch.tensor(kl))
    torch.testing.assert_close(ppo.lr, torch.tensor(getattr(ppo.settings, bound)))


@pytest.mark.parametrize(
    ("far", "factor"), [(0.45, 1.5), (0.55, 1.0), (1.0, 1.0), (1.9, 1.0), (2.1, 1 / 1.5)]
)
def test_the_adaptive_rate_changes_where_the_divergence_is_twice_too_large_or_small(
    env: VecEnv, far: float, factor: float
) -> None:
    """After every epoch, by the mean over its minibatches: here all have the same divergence."""
    ppo = make_ppo(env, lr_schedule="adaptive", lr=1e-3, desired_kl=0.02, num_epochs=3)
    ppo.collect()
    kl = far * 0.02
    ppo.step = lambda minibatch: torch.tensor([0.0, 0.0, 0.0, kl, 0.0])
    metrics = ppo.update()
    torch.testing.assert_close(ppo.lr, torch.tensor(1e-3 * factor**3))
    torch.testing.assert_close(metrics["policy/lr"], ppo.lr)
    torch.testing.assert_close(metrics["policy/kl"], torch.tensor(kl))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_other_rates_do_not_follow_the_divergence(env: VecEnv, schedule: str) -> None:
    """A constant rate stays, and a linear one follows the iterations."""
    ppo = make_ppo(env, lr_schedule=schedule, lr=1e-3)
    ppo._adapt_lr(torch.tensor(9.0))
    torch.testing.assert_close(ppo.lr, torch.tensor(1e-3))


@pytest.mark.parametrize("loss", ["torchrl", "fused"])
def test_what_is_reported_is_the_mean_over_all_samples(env: VecEnv, loss: str) -> None:
    """With a learning rate of zero every epoch sees the weights that collected: the numbers follow from the
    data by the formulas of the paper."""
    options = {"normalize_advantage": False, "value_coef": 0.5, "entropy_coef": 0.1, "num_epochs": 3}
    ppo = make_ppo(env, loss=loss, lr_schedule="constant", **options)
    ppo.lr.zero_()
    ppo.collect()
    metrics = ppo.update()
    data = ppo.rollout.data
    error = data["state_value"] - data["value_target"]
    entropy = 0.5 * (2 * torch.pi * torch.e * metrics["policy/std"] ** 2).log()  # of one action
    expected = {
        "loss/policy": -data["advantage"].mean(),
        "loss/value": 0.5 * error.square().mean(),
        "policy/entropy": entropy,
        "policy/kl": torch.tensor(0.0),
        "policy/clip_fraction": torch.tensor(0.0),
        "policy/std": ppo.policy.log_std.detach().exp().mean(),
        "policy/lr": torch.tensor(0.0),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_reward_scale_multiplies_what_is_learned(env: VecEnv) -> None:
    """Without a critic's opinion and with gamma = 0 the target of a step is its scaled reward."""
    ppo = make_ppo(env, gamma=0.0, reward_scale=50.0)
    ppo.collect()
    reward = ppo.rollout.data["next", "reward"].clone()
    ppo.update()
    torch.testing.assert_close(ppo.rollout.data["value_target"], 50.0 * reward, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("text", "field"), [("lr=1e-6", "lr_min"), ("lr=0.5", "lr_max")])
def test_the_adaptive_rate_begins_within_its_bounds(tmp_path: Path, text: str, field: str) -> None:
    """A rate outside would jump to the bound at the first change."""
    path = tmp_path / "a.yaml"
    path.write_text("algorithm: {lr_schedule: adaptive}")
    with pytest.raises(ConfigError, match=rf"algorithm\.{field} = .*not within the bounds"):
        load_config(path, [f"algorithm.{text}"])
    assert load_config(path, [f"algorithm.{text}", "algorithm.lr_schedule=constant"])


def test_a_resumed_run_has_the_same_moments(tmp_path: Path) -> None:
    """A run with normalized values that was cut in two is the same to the last bit as one in a piece."""
    path = tmp_path / "a.yaml"
    path.write_text("env: {name: cartpole_balance}")
    sizes = [*("env.num_envs=4", "algorithm.horizon=8", "algorithm.minibatch_size=16", "compute.compile=off")]
    options = ["algorithm.normalize_value=true", "algorithm.clip_value_loss=true", "tracking.backend=none"]
    brief = [
        "evaluation.num_episodes=1",
        "deployment.export=none",
        "evaluation.curve=false",
        f"experiment.output_dir={tmp_path}",
    ]
    folders = []
    for name, ends in (("whole", [128]), ("halves", [64, 128])):
        for end in ends:
            own = [f"experiment.name={name}", f"training.total_steps={end}", "algorithm.lr_schedule=constant"]
            folders.append(run(path, [*sizes, *options, *brief, *own]).folder)
    whole, halves = (last_tensors(RunFolder(folder)) for folder in (folders[0], folders[-1]))
    assert whole["critic.moments"][0].item() == 128
    assert_same_tensors(whole, halves)
