"""Random network distillation: its reward is its formula, what is seen often is worth less, it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.make import make_env
from pi_incubator.algorithms.ppo import PPO
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.distributed import Distributed
from pi_incubator.training.novelty import KEY, Novelty
from tests.learning import make_algorithm, state_of

T, N, D = 6, 4, 3
CPU = torch.device("cpu")


def make_novelty(lr: float = 1e-3) -> Novelty:
    torch.manual_seed(0)
    return Novelty(D, N, gamma=0.9, lr=lr, device=CPU)


def test_the_reward_is_the_error_by_the_deviation_of_its_returns() -> None:
    """Observations in standard deviations from their mean, clipped to ±5; returns go on over two rollouts."""
    novelty = make_novelty()
    draw = torch.Generator().manual_seed(1)
    rollouts = [3.0 + 2.0 * torch.randn(T, N, D, generator=draw) for _ in range(2)]
    rollouts[1][2, 3] = 90.0
    for rollout in rollouts:
        reward, normalized = novelty.reward(rollout, Distributed())
    seen = torch.cat(rollouts).flatten(0, 1).double()
    expected = ((rollouts[1].double() - seen.mean(0)) / seen.std(0, correction=0)).clamp(-5.0, 5.0)
    torch.testing.assert_close(normalized.double(), expected, rtol=1e-3, atol=1e-3)
    assert normalized[2, 3].max() == 5.0

    first = rollouts[0].double().flatten(0, 1)
    before = (rollouts[0].double() - first.mean(0)) / first.std(0, correction=0)
    errors = [
        (novelty.predictor(x.float()) - novelty.target(x.float())).square().mean(-1)
        for x in (before, normalized)
    ]
    returns, total = [], torch.zeros(N)
    for row in torch.cat(errors):
        total = 0.9 * total + row
        returns.append(total)
    deviation = torch.stack(returns).std(correction=0)
    torch.testing.assert_close(reward, errors[1] / deviation, rtol=1e-3, atol=1e-4)


def test_what_is_learned_is_worth_less_than_what_is_new() -> None:
    novelty = make_novelty()
    known = torch.randn(T, N, D, generator=torch.Generator().manual_seed(2))
    first, normalized = novelty.reward(known, Distributed())
    target = [weight.clone() for weight in novelty.target.parameters()]
    for _ in range(300):
        gradients, loss = novelty.gradients(TensorDict({KEY: normalized.flatten(0, 1)}, batch_size=[T * N]))
        novelty.apply(list(gradients), torch.tensor(True))
    later, _ = novelty.reward(torch.cat((known[:-1], 3.0 + known[-1:])), Distributed())
    assert later[:-1].mean() < 0.2 * first.mean()
    assert later[-1].mean() > 3.0 * later[:-1].mean()
    assert loss < 0.1
    assert all(torch.equal(*pair) for pair in zip(target, novelty.target.parameters(), strict=True))


def make_ppo(network: str = "mlp", **algorithm: Any) -> PPO:
    sizes = {"horizon": 8, "minibatch_size": 16, "num_epochs": 1}
    sections = {"env": {"name": "hopper", "num_envs": N}, "algorithm": sizes | algorithm}
    cfg = ExperimentConfig.model_validate(sections | {"network": {"name": network, "hidden_sizes": [8]}})
    torch.manual_seed(0)
    return make_algorithm(cfg, make_env("hopper", num_envs=N, device=CPU))


def test_the_bonus_joins_the_reward_of_the_state_that_a_step_leads_to() -> None:
    ppo, plain = make_ppo(rnd_coef=0.5), make_ppo()
    plain.model.load_state_dict(ppo.model.state_dict())
    assert ppo.novelty is not None
    for algorithm in (ppo, plain):
        algorithm.collect()
    raw = ppo.policy.normalizer.of("policy").inverse(ppo.rollout.data["policy"])
    expected = torch.cat((raw[1:], ppo.env.obs["policy"][None]))
    for algorithm in (ppo, plain):
        algorithm.advantage(algorithm.rollout.data)
    bonus = ppo.rollout.data["next", "reward"] - plain.rollout.data["next", "reward"]
    assert (bonus > 0).all()
    torch.testing.assert_close(ppo.rollout.data[KEY], ppo.novelty.normalizer(expected))
    torch.testing.assert_close(bonus.mean(), 0.5 * ppo.mean_novelty, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_the_predictor_learns_beside_the_policy_and_is_saved(network: str) -> None:
    """A second training that takes over the saved state goes on bit for bit."""
    ppo, other = (make_ppo(network, rnd_coef=0.5, rnd_lr=1e-3) for _ in range(2))
    metrics = {}
    for _ in range(2):
        ppo.collect()
        metrics = ppo.update()
    assert {"loss/novelty", "reward/novelty"} <= metrics.keys()
    saved = {name: part.value.state_dict() for name, part in ppo.parts().items()}
    for name, part in other.parts().items():
        part.value.load_state_dict(saved[name])
    for algorithm in (ppo, other):
        algorithm.collect()
        algorithm.update()
    ours, theirs = state_of(ppo), state_of(other)
    assert any(name.startswith("novelty_predictor") for name in ours)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["training.overlap=true"], "the predictor is read while an update in the background"),
        (["network.name=cnn", "env.pixels={}"], "network cnn sees pixels"),
    ],
)
def test_combinations_that_cannot_work_are_one_line(
    tmp_path: Path, settings: list[str], problem: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("algorithm: {rnd_coef: 1}\n")
    with pytest.raises(ConfigError, match=f"a.yaml:1: algorithm.rnd_coef = 1.0: {problem}"):
        load_config(path, settings)
