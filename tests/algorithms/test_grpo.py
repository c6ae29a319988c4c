"""GRPO: groups begin as copies, advantages are relative to them, and the loss is PPO's without a critic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from envs_gpu.errors import SettingError
from envs_gpu.make import make_env
from pi_incubator.algorithms.grpo import GRPO, REFERENCE, centered
from pi_incubator.cli.train import main
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.training.policy_gradient import ACTOR_FEATURES
from tests.learning import make_algorithm

Steps = list[tuple[Tensor, Tensor]]
T, N, G = 12, 8, 4
CPU = torch.device("cpu")
SIZES = {"name": "grpo", "horizon": T, "group_size": G, "minibatch_size": 32, "gamma": 0.9}


def make_grpo(task: str = "hopper", network: dict[str, Any] | None = None, **algorithm: Any) -> GRPO:
    """The same weights every time."""
    sections = {"env": {"name": task, "num_envs": N}, "algorithm": SIZES | algorithm}
    cfg = ExperimentConfig.model_validate(sections | {"network": network or {"hidden_sizes": [8]}})
    torch.manual_seed(0)
    return make_algorithm(cfg, make_env(task, num_envs=N, device=CPU))


def grouped(tensor: Tensor) -> Tensor:
    """`[T, N, ...]` -> `[T, N / G, G, ...]`."""
    return tensor.unflatten(1, (-1, G))


def watch_steps(grpo: GRPO, change: Callable[[int, Tensor], Tensor] = lambda _, action: action) -> Steps:
    """A list that grows by each step's observation and action of all worlds, after `change`."""
    steps, plain = [], grpo.env.step

    def step(action: Tensor) -> Any:
        action = change(len(steps), action)
        steps.append((grpo.env.obs["policy"].clone(), action.clone()))
        return plain(action)

    grpo.env.step = step
    return steps


def test_each_rollout_begins_with_groups_of_equal_worlds() -> None:
    """From resets first, then from a state that one of the group was in; actions differ from the start."""
    grpo = make_grpo()
    steps = watch_steps(grpo)
    for rollout in range(3):
        before = grpo.env.obs["policy"].clone().unflatten(0, (-1, G))
        grpo.collect()
        first, action = (value.unflatten(0, (-1, G)) for value in steps[rollout * T])
        assert torch.equal(first, first[:, :1].expand_as(first))
        for group, own in zip(first, before, strict=True):
            assert any(torch.equal(group[0], world) for world in own)
        assert not torch.equal(first[0], first[1])
        assert (action.std(1) > 0.1).all()


def test_the_state_of_a_recurrent_policy_is_copied_too() -> None:
    grpo = make_grpo(network={"name": "gru", "hidden_sizes": [6]}, minibatch_size=4 * T)
    grpo.collect()
    grpo.collect()
    state = grouped(grpo.rollout.data["state"])[0]
    assert state.abs().max() > 0
    assert torch.equal(state, state[:, :1].expand_as(state))


def float64_advantage(data: TensorDict, gamma: float, normalize: str) -> Tensor:
    """By the definition: returns-to-go minus the group's mean at each time, by a standard deviation."""
    reward, done = data["next", "reward"].double().squeeze(-1), data["next", "done"].squeeze(-1)
    returns = torch.zeros(T, N, dtype=torch.float64)
    following = torch.zeros(N, dtype=torch.float64)
    for t in reversed(range(T)):
        following = reward[t] + gamma * torch.where(done[t], 0.0, following)
        returns[t] = following
    relative = grouped(returns) - grouped(returns).mean(-1, keepdim=True)
    if normalize == "group":
        return (relative / relative.transpose(0, 1).flatten(1).std(1)[:, None]).flatten(1)
    return relative.flatten(1) / relative.std(correction=0)


@pytest.mark.parametrize("normalize", ["batch", "group"])
def test_the_advantage_is_its_definition_also_where_episodes_end(normalize: str) -> None:
    grpo = make_grpo(reward_scale=0.5, normalize=normalize)
    for step in range(6):  # until hoppers fall within a rollout
        grpo.collect()
        data = grpo.rollout.data.clone()
        grpo.advantage(grpo.rollout.data)
        advantage = grpo.rollout.data["advantage"].squeeze(-1)
        expected = float64_advantage(data, 0.9, normalize)
        torch.testing.assert_close(advantage.double(), expected, rtol=1e-4, atol=1e-4)
        if step > 2 and data["next", "terminated"].any():
            return
    raise AssertionError("no episode ended")


def test_groups_without_spread_and_steps_that_do_not_count_have_no_advantage() -> None:
    """Exactly zero, however large the equal returns are; and what does not count moves no mean."""
    returns = torch.randn(T, 3 * G, generator=torch.Generator().manual_seed(0))
    returns[:, G : 2 * G] = 0.1 + 1000.0 * torch.rand(T, 1)
    valid = torch.ones(T, 3 * G, dtype=torch.bool)
    valid[:, 2 * G] = False
    poisoned = returns.clone()
    poisoned[:, 2 * G] = torch.nan
    advantage = centered(poisoned, valid, G)
    assert (advantage[:, G : 2 * G] == 0).all()
    assert (advantage[:, 2 * G] == 0).all()
    torch.testing.assert_close(advantage[:, :G], returns[:, :G] - returns[:, :G].mean(1, keepdim=True))
    torch.testing.assert_close(advantage[:, 2 * G + 1 :].mean(1), torch.zeros(T), rtol=0, atol=1e-6)


def test_no_step_of_an_episode_counts_whose_world_breaks() -> None:
    grpo = make_grpo("ant")
    is_broken = torch.arange(N)[:, None] == 2
    watch_steps(grpo, lambda t, action: action.masked_fill(is_broken, torch.nan) if t == 4 else action)
    grpo.collect()
    grpo.advantage(grpo.rollout.data)
    valid = grpo.rollout.data["valid"].squeeze(-1)
    assert not valid[:5, 2].any()
    assert valid[5:, 2].all()
    assert valid[:, [0, 1, 3, 4, 5, 6, 7]].all()


def make_samples(grpo: GRPO, size: int = 64) -> TensorDict:
    draw = torch.Generator().manual_seed(1)
    contents = {
        ACTOR_FEATURES: torch.randn(size, grpo.env.spec.obs_dims["policy"], generator=draw),
        "action": torch.randn(size, grpo.env.spec.action_dim, generator=draw),
        "action_log_prob": -3.0 - torch.rand(size, generator=draw),
        "advantage": torch.randn(size, 1, generator=draw),
    }
    return TensorDict(contents, batch_size=[size])


def test_the_loss_is_torchrls_clipped_surrogate_without_a_critic() -> None:
    grpo = make_grpo(entropy_coef=0.02, clip_ratio=0.3)
    samples = make_samples(grpo)
    unused = TensorDictModule(torch.nn.Linear(1, 1), in_keys=["advantage"], out_keys=["state_value"])
    options = {"clip_epsilon": 0.3, "entropy_coeff": 0.02, "critic_coeff": 0.0, "functional": False}
    reference = ClipPPOLoss(grpo.torchrl_actor(), unused, **options)
    theirs = reference(samples.clone().set("value_target", samples["advantage"]))
    loss, (objective, entropy, kl, outside) = grpo.losses(samples)
    torch.testing.assert_close(loss, theirs["loss_objective"] + theirs["loss_entropy"])
    torch.testing.assert_close(objective, theirs["loss_objective"])
    torch.testing.assert_close(entropy, theirs["entropy"])
    torch.testing.assert_close(outside, theirs["clip_fraction"])
    assert kl > 0
    ours = torch.autograd.grad(loss, grpo.parameters)
    expected = torch.autograd.grad(theirs["loss_objective"] + theirs["loss_entropy"], grpo.parameters)
    for gradient, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("task", ["hopper", "yam_reach"])
def test_there_is_no_critic(task: str) -> None:
    """Not in what is saved, also where a task has observations for one, and not in what is reported."""
    grpo = make_grpo(task)
    grpo.collect()
    assert "critic" not in set(grpo.rollout.data.keys())
    metrics = grpo.update()
    assert not any("critic" in name or "value" in name for name in (*grpo.parts(), *metrics))
    num_policy = sum(weight.numel() for weight in grpo.policy.parameters())
    optimizer = grpo.parts()["optimizer"].value.state_dict()
    assert sum(value.numel() for name, value in optimizer.items() if name.endswith("exp_avg")) == num_policy


@pytest.mark.parametrize(("changed", "matters"), [(T - 4, False), (T - 5, True)])
def test_only_steps_before_the_lookahead_are_learned_from(changed: int, matters: bool) -> None:
    """Other actions in the steps after them change nothing."""
    weights = []
    for offset in (0.0, 1.0):
        grpo = make_grpo(lookahead=4)
        grpo.collect()
        data = grpo.rollout.data
        grpo.advantage(data)
        data["action"][changed] += offset
        grpo.learn(data)
        weights.append(torch.cat([weight.detach().flatten() for weight in grpo.policy.parameters()]))
    assert torch.equal(*weights) != matters


def test_the_divergence_from_the_first_policy_is_eq_4() -> None:
    """Zero at the start; later that of the first policy with its own normalizer."""
    grpo = make_grpo(kl_coef=0.7, lr=1e-2)
    first, steps = copy.deepcopy(grpo.policy), watch_steps(grpo)
    for _ in range(3):
        grpo.collect()
        metrics = grpo.update()
    assert metrics["policy/reference_kl"] > 0
    observation, action = (torch.cat(values) for values in zip(*steps[-T:], strict=True))
    log_prob = first.distribution(first.normalizer({"policy": observation})["policy"]).log_prob(action)
    torch.testing.assert_close(grpo.rollout.data[REFERENCE].flatten(), log_prob, rtol=1e-4, atol=1e-4)
    samples = make_samples(grpo)
    samples[REFERENCE] = samples["action_log_prob"] - 0.5
    loss, report = grpo.losses(samples)
    distribution = grpo.policy.distribution(samples[ACTOR_FEATURES])
    difference = samples[REFERENCE] - distribution.log_prob(samples["action"])
    torch.testing.assert_close(report[-1], (difference.exp() - difference - 1.0).mean())
    torch.testing.assert_close(loss, report[0] + 0.7 * report[-1])
    assert "reference" in grpo.parts()
    assert "reference" not in make_grpo().parts()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm.group_size=3"], "group_size = 3: must divide env.num_envs = 8; .* to 6 or 9"),
        (["algorithm.lookahead=64"], "lookahead = 64: leaves none of algorithm.horizon = 64 steps"),
        (["algorithm.lookahead=1"], r"minibatch_size = 512: must divide .*lookahead\) = 504"),
        (["algorithm.kl_coef=1", "network.name=gru"], "kl_coef = 1.0: network gru has a state"),
        (["algorithm.value_coef=1"], "value_coef = 1: only algorithm.name = a2c"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: list[str], message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("env: {name: hopper, num_envs: 8}\nalgorithm: {name: grpo}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, settings)
    assert len(str(caught.value).splitlines()) == 1


def test_shards_that_cut_groups_are_refused() -> None:
    sections = {"env": {"name": "hopper", "num_envs": N}, "compute": {"shards": 4}}
    cfg = ExperimentConfig.model_validate(sections | {"algorithm": SIZES | {"group_size": 4}})
    with pytest.raises(SettingError, match=r"makes 2 groups, .* the 4 shards of a process"):
        make_algorithm(cfg, make_env("hopper", num_envs=N, device=CPU))


PENDULUM = """
import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv

class Own(PendulumEnv):
    pass

gymnasium.register("Own-v0", Own)
"""


def test_worlds_that_cannot_be_copied_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An env of a user's own module may keep anything."""
    (tmp_path / "own_pendulum.py").write_text(PENDULUM)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(
        f"experiment: {{output_dir: {tmp_path}}}\nenv: {{name: 'gymnasium/own_pendulum:Own-v0'}}\n"
        "algorithm: {name: grpo}\ntracking: {backend: none}\n"
    )
    with pytest.raises(ConfigError, match=r"a.yaml:3: algorithm.name = 'grpo': .*cannot be copied") as caught:
        main(["--config", str(path)])
    assert len(str(caught.value).splitlines()) == 1
