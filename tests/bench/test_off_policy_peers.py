"""`pi-bench train` and `replay` measure off-policy learning, beside the peers that are installed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import _train_plan
from bench._lean_sac import Actor, Buffer, LeanSAC, LeanSettings
from bench._loops import ScoredLoop
from bench._train_plan import PEERS, chosen_peers, comparisons
from bench._worker import Budget, Worker, run_slice
from bench.cli import main
from pi_incubator.config import ExperimentConfig, load_with_sources
from pi_incubator.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
SAC = CONFIGS / "sac/half_cheetah.yaml"
SMALL = (
    *("env.num_envs=2", "network.hidden_sizes=[32, 16]", "algorithm.batch_size=16"),
    *("algorithm.learning_starts=100", "algorithm.buffer_size=1000", "compute.compile=off"),
)
SMALL_PARAMETERS = (17 * 32 + 32) + (32 * 16 + 16) + (16 * 12 + 12)  # of the policy: 17 seen, 6 actions
SMALL_PARAMETERS += 2 * ((23 * 32 + 32) + (32 * 16 + 16) + (16 + 1))


def config(*overrides: str, file: Path = SAC) -> ExperimentConfig:
    return load_with_sources(str(file), list(overrides))[0]


def command(*overrides: str, peer: tuple[str, ...] = (), sweep: bool = False) -> argparse.Namespace:
    given = {"beside": None, "identical": False, "sb3_vec": "dummy", "sweep": sweep}
    return argparse.Namespace(config=str(SAC), overrides=list(overrides), peer=list(peer), **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sb3_sac", "sb3_td3", "sbx_sac", "cleanrl_sac"])
def test_a_peer_has_worlds_batch_widths_and_updates_of_the_config(name: str) -> None:
    cfg, peer = config(*SMALL, "algorithm.horizon=3"), PEERS[name]
    if peer.lacks(cfg) == ("not installed", peer.install):
        pytest.skip("the peer is an extra: pip install -e '.[peers]'")
    assert peer.same is not None
    with Worker(name, peer.same(cfg)) as worker:
        turn = worker.run(Budget(iterations=2))
        assert turn.updates == turn.env_steps >= 2 * 100, "one update for each env step"
        sizes = {"num_envs": 2, "batch_size": 16, "hidden_sizes": [32, 16]}
        sizes |= {"num_updates": 6, "steps_between_updates": 6}
        assert sizes.items() <= worker.facts.items()
        if "sac" in name:
            assert worker.facts["num_parameters"] == SMALL_PARAMETERS
        assert worker.facts["version"] in peer.describe(worker.facts)


def test_a_config_meets_the_peers_that_learn_as_it_does() -> None:
    off_policy, on_policy = config(), config(file=CONFIGS / "ppo" / "half_cheetah.yaml")
    chosen = chosen_peers(["all"], off_policy)
    assert {"sb3_sac", "sb3_td3", "sbx_sac", "cleanrl_sac", "flashsac", "holosoma", "unilab"} == set(chosen)
    assert not set(chosen) & set(chosen_peers(["all"], on_policy))
    assert set(chosen) | set(chosen_peers(["all"], on_policy)) == set(PEERS)
    assert "learns off-policy" in str(PEERS["sb3_sac"].lacks(on_policy))
    assert "only ppo" in str(PEERS["sb3"].lacks(off_policy))


def test_who_is_not_measured_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench._loops._peer.find_spec", lambda name: None)
    own, identical = comparisons(command())
    for comparison in (own, identical):
        assert comparison.left_out == dict.fromkeys(
            chosen_peers(["all"], comparison.cfg), f"not installed; {PEERS['sb3_sac'].install}"
        ) | {name: f"not installed; {PEERS[name].install}" for name in ("flashsac", "holosoma", "unilab")}
    monkeypatch.setattr("bench._loops._peer.find_spec", lambda name: True)
    own, _ = comparisons(command())
    assert own.left_out.keys() == {"holosoma", "unilab"}
    assert "no loop for it" in own.left_out["unilab"]
    peers = ["sb3_sac", "sb3_td3", "sbx_sac", "cleanrl_sac", "flashsac"]
    assert list(own.entries) == ["pi_incubator", *peers, "physics"]


def test_peers_as_they_come_and_with_our_numbers() -> None:
    own, identical = comparisons(command("env.num_envs=4", "algorithm.tau=0.01", peer=("cleanrl_sac",)))
    theirs = own.entries["cleanrl_sac"].settings
    assert (theirs["num_envs"], theirs["numbers"]) == (1, {})
    theirs = identical.entries["cleanrl_sac"].settings
    assert (theirs["num_envs"], theirs["numbers"]["tau"], theirs["numbers"]["num_updates"]) == (4, 0.01, 4)
    assert identical.cfg.network.normalize_observations is False


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (command("algorithm.updates_per_step=0.3", peer=("cleanrl_sac",)), "makes 2.4 updates an iteration"),
        (command(peer=("sb3",)), "only ppo with an mlp is compared"),
        (command(peer=("cleanrl_sac",), sweep=True), "--sweep"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: argparse.Namespace, names: str) -> None:
    with pytest.raises(UserError, match=names):
        comparisons(arguments)


def test_updates_of_a_turn_are_counted() -> None:
    class Learning(ScoredLoop):
        done = 7

        @property
        def num_updates(self) -> int:
            return self.done

        def iterate(self) -> int:
            self.done += 3
            return 10

        def recent_return(self) -> float | None:
            return None

    turn = run_slice(Learning(), Budget(iterations=5))
    assert (turn.env_steps, turn.updates) == (50, 15)
    assert turn.updates_per_s == pytest.approx(0.3 * turn.steps_per_s)


@pytest.mark.slow
def test_our_updates_are_measured_beside_our_steps(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    turns = ("--peer", "none", "--rounds", "2", "--iterations", "5", "--json", str(file))
    assert main(["train", "--config", str(SAC), *turns, *SMALL, "algorithm.updates_per_step=0.5"]) is None
    result = json.loads(file.read_text())
    for turn in result["comparisons"]["own"]["rounds"]:
        ours = turn["pi_incubator"]
        assert (ours["env_steps"], ours["updates"]) == (5 * 2, 5)
    steps, updates = (result["metrics"][f"own{kind}: pi_incubator"] for kind in ("", ", updates"))
    assert (updates["unit"], updates["better"]) == ("updates/s", "higher")
    assert updates["rounds"] == [pytest.approx(0.5 * speed) for speed in steps["rounds"]]


class _Corridor:
    """One number seen and one done: the reward is 1 where the action is positive; five steps long."""

    single_observation_space = SimpleNamespace(shape=(1,))
    single_action_space = SimpleNamespace(low=np.full(1, -2.0), high=np.full(1, 4.0))

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.clock = num_envs, 0
        random = np.random.default_rng(0)
        sample = lambda: random.uniform(-2.0, 4.0, (num_envs, 1)).astype(np.float32)  # noqa: E731
        self.action_space = SimpleNamespace(sample=sample)

    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros((self.num_envs, 1)), {}

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        self.clock += 1
        ends = np.full(self.num_envs, self.clock % 5 == 0)
        last = np.full((self.num_envs, 1), float(self.clock))
        about = {"final_obs": list(last)} if ends.any() else {}
        return np.where(ends[:, None], 0.0, last), (action[:, 0] > 0) * 1.0, ends, ends & False, about


@pytest.mark.slow
def test_the_lean_sac_learns_and_stores_the_true_last_observation() -> None:
    torch.manual_seed(0)
    settings = LeanSettings(
        num_updates=8, batch_size=64, buffer_size=4000, learning_starts=64, hidden_sizes=(32,), lr_actor=3e-3
    )
    learner = LeanSAC(_Corridor(4), 4, settings)
    for _ in range(80):
        learner.collect()
        learner.update()
    assert learner.num_updates == 8 * (80 - 16)
    stored = learner.buffer.columns
    assert stored["next_obs"][4, :, 0].tolist() == [5.0] * 4
    assert stored["obs"][5, :, 0].tolist() == [0.0] * 4
    assert stored["terminated"][:6, 0].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert np.mean(list(learner.returns)[-8:]) > 4.5


def test_the_lean_sac_has_the_log_probability_of_torchs_squashed_normal() -> None:
    torch.manual_seed(0)
    low, high = np.array([-1.0, -2.0]), np.array([1.0, 4.0])
    actor, obs = Actor(3, low, high, (8,)), torch.randn(50, 3)
    mean, raw = actor.layers(obs).chunk(2, -1)
    std = (-5.0 + 3.5 * (raw.tanh() + 1.0)).exp()
    action, log_prob = actor(obs)
    squash = torch.distributions.TanhTransform()
    move = torch.distributions.AffineTransform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    squashed = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, std), [squash, move]
    )
    inside = ((action - move.loc) / move.scale).abs().amax(-1) < 0.99  # outside, rounding decides
    assert inside.sum() > 10
    expected = squashed.log_prob(action).sum(-1)
    torch.testing.assert_close(log_prob[inside], expected[inside], rtol=1e-3, atol=1e-3)


def test_the_lean_buffer_samples_only_what_was_added() -> None:
    buffer = Buffer(length=4, num_envs=2, num_obs=1, num_actions=1, seed=0)
    for t in range(1, 4):
        column = np.full((2, 1), float(t))
        nothing = np.zeros(2)
        buffer.add(obs=column, next_obs=column, action=column, reward=nothing + t, terminated=nothing)
    assert set(buffer.sample(200).reward.tolist()) == {1.0, 2.0, 3.0}


def test_replay_is_measured_beside_an_update(tmp_path: Path) -> None:
    file = tmp_path / "replay.json"
    line = ["replay", "--config", str(SAC), "--rounds", "2", "--json", str(file), *SMALL]
    assert main([*line, "env.name=cartpole_balance", "algorithm.buffer_size=4000"]) is None
    metrics = json.loads(file.read_text())["metrics"]
    add, sample, update = (metrics[f"time: {name}"]["rounds"] for name in ("add", "sample", "update"))
    shares = [100 * (a + s) / u for a, s, u in zip(add, sample, update, strict=True)]
    assert metrics["add and sample: of an update"]["rounds"] == pytest.approx(shares)
    prioritized = metrics["time: sample, prioritized"]["rounds"]
    ratios = [p / s for p, s in zip(prioritized, sample, strict=True)]
    assert metrics["prioritized over uniform: sample"]["rounds"] == pytest.approx(ratios)
    assert {"memory over raw bytes: uniform", "memory over raw bytes: prioritized"} <= metrics.keys()


def test_replay_of_an_algorithm_without_a_buffer_is_refused() -> None:
    with pytest.raises(UserError, match="'ppo': has no replay buffer"):
        main(["replay", "--config", str(CONFIGS / "ppo" / "half_cheetah.yaml")])


def test_a_peer_without_its_returns_is_told_apart() -> None:
    """Of `--time-to-return`: all loops that run tell how their training goes."""
    off_policy = [PEERS[name] for name in _train_plan.peers_of(config())]
    assert all(peer.tells_returns and peer.default for peer in off_policy if not peer.is_named_only)
