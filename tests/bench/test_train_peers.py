"""Every peer of `pi-bench train` runs, and what they are measured with does what it says."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import _train_measure, _train_plan
from bench._lean_ppo import LeanPPO, LeanSettings
from bench._loops import ScoredLoop
from bench._loops._peer import GYMNASIUM_IDS
from bench._loops.pi_incubator import RecentReturns
from bench._time_to_return import Progress, metrics_of
from bench._train_plan import OUR_SIZES, OURS, PEERS, PHYSICS, Comparison, Entry, chosen_peers, sized
from bench._worker import Budget, Slice, Worker, run_slice
from pi_incubator.config import ExperimentConfig, load_with_sources
from pi_incubator.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs/experiment_config_baseline.yaml"
SMALL = ("env.name=hopper", "env.num_envs=2", "algorithm.horizon=32", "algorithm.minibatch_size=16")


def config(*overrides: str) -> ExperimentConfig:
    return load_with_sources(str(CONFIG), list(overrides))[0]


@pytest.mark.parametrize(
    "name", ["sb3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sbx", "torchrl", "envpool"))]
)
def test_a_peer_runs_with_the_settings_of_a_config(name: str) -> None:
    cfg, peer = config(*SMALL), PEERS[name]
    assert peer.lacks(cfg) is None
    assert peer.same is not None
    with Worker(name, peer.same(cfg)) as worker:
        turn = worker.run(Budget(iterations=2))
        assert turn.env_steps == 2 * 2 * 32
        assert worker.facts["num_envs"] == 2
        assert worker.facts["num_parameters"] > 0
        assert worker.facts["version"] in peer.describe(worker.facts)


@pytest.mark.slow
def test_brax_takes_turns() -> None:
    peer = PEERS["brax"]
    with Worker("brax", peer.sized(config("env.name=hopper"), 64)) as worker:
        assert worker.run(Budget(iterations=1)).env_steps == 32 * 10 * 16
        assert "another physics model" in peer.describe(worker.facts)


def test_gymnasium_has_the_tasks_that_are_said_to_be_its() -> None:
    import gymnasium

    assert all(gymnasium.spec(name) for name in GYMNASIUM_IDS.values())


def test_peers_are_chosen_by_name() -> None:
    cfg = config()
    assert chosen_peers(["all"], cfg) == ["sb3", "sbx", "torchrl", "envpool", "brax"]
    assert chosen_peers(["none"], cfg) == []
    assert chosen_peers(["sbx", "sb3", "sbx"], cfg) == ["sbx", "sb3"]
    with pytest.raises(UserError, match="none stands alone"):
        chosen_peers(["none", "sb3"], cfg)


@pytest.mark.parametrize("num_envs", OUR_SIZES)
def test_a_sweep_gives_us_the_batch_that_it_gives_a_pool(num_envs: int) -> None:
    cfg = config()
    ours, pool = (sized(name, cfg, num_envs).settings for name in (OURS, "envpool"))
    algorithm = ours["algorithm"]
    assert ours["env"]["num_envs"] == pool["num_envs"] == num_envs
    assert {name: algorithm[name] for name in ("horizon", "minibatch_size")} == pool["ppo"]
    assert ours["training"]["overlap"]
    assert algorithm["num_epochs"] == cfg.algorithm.num_epochs


def test_each_of_our_loops_is_compared_with_each_peer() -> None:
    speeds = {OURS: [10.0, 20.0], f"{OURS} x256": [30.0, 30.0], "sb3": [5.0, 5.0], "envpool": [2.0, 10.0]}
    entries = {label: Entry(label.split()[0], {}) for label in speeds}
    rounds = [
        {label: Slice(int(values[i]), wall_s=1.0) for label, values in speeds.items()} for i in range(2)
    ]
    metrics = _train_measure.metrics_of(
        _train_measure.Measurement(Comparison("own", config(), entries), {}, rounds)
    )
    assert metrics["own: pi_incubator/best peer"]["rounds"] == [2.0, 2.0]
    assert metrics["own: pi_incubator x256/best peer"]["rounds"] == [6.0, 3.0]
    assert metrics["own: pi_incubator x256/sb3"]["rounds"] == [6.0, 6.0]
    assert "own: pi_incubator/pi_incubator x256" not in metrics


def test_a_turn_ends_when_the_return_is_there() -> None:
    class Learning(ScoredLoop):
        iterations = 0

        def iterate(self) -> int:
            self.iterations += 1
            return 10

        def recent_return(self) -> float | None:
            return None if self.iterations < 3 else 100.0 * self.iterations

    turn = run_slice(Learning(), Budget(iterations=50, until_return=500.0))
    assert (turn.env_steps, turn.recent_return) == (50, 500.0)


def test_recent_returns_are_those_of_the_last_hundred_episodes() -> None:
    random = np.random.default_rng(1)
    recent, every = RecentReturns(), np.empty(0)
    for count in (30, 0, 50, 40, 7, 90, 3):
        mean = float(random.normal())
        recent.add({"episode/count": float(count), **({"episode/return": mean} if count else {})})
        every = np.append(every, [mean] * count)
        expected = every[-100:].mean() if len(every) >= 100 else None
        assert recent.mean() == (None if expected is None else pytest.approx(expected))


def test_a_peer_that_did_not_arrive_gives_a_bound() -> None:
    ours, theirs = Progress(10.0, 50.0, reached=True), Progress(1.0, 200.0)
    metrics = metrics_of({"pi_incubator": ours, "sb3": theirs}, 2000.0)
    assert metrics["time to return 2000: pi_incubator"]["median"] == 50.0
    assert "time to return 2000: sb3" not in metrics
    ratio = metrics["time to return 2000: sb3/pi_incubator"]
    assert (ratio["median"], ratio["at_least"]) == (4.0, True)


class _Corridor:
    """One env, one number seen and one done: the reward is 1 where the action is positive."""

    observation_space = SimpleNamespace(shape=(1,))
    action_space = SimpleNamespace(low=np.full(1, -1.0), high=np.full(1, 1.0))

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.clock = num_envs, 0

    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
        return np.ones((self.num_envs, 1)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:
        self.clock += 1
        no = np.zeros(self.num_envs, dtype=bool)
        reward = (action[:, 0] > 0).astype(np.float32)
        return np.ones((self.num_envs, 1)), reward, no | (self.clock % 5 == 0), no, no


def test_the_lean_ppo_learns() -> None:
    torch.manual_seed(0)
    learner = LeanPPO(_Corridor(16), 16, LeanSettings(horizon=32, lr=3e-3, minibatch_size=128, num_epochs=4))
    for _ in range(15):
        learner.collect()
        learner.update()
    assert learner.rewards.mean() > 0.9


def test_the_lean_ppo_has_torchrls_advantages() -> None:
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    torch.manual_seed(0)
    learner = LeanPPO(_Corridor(4), 4, LeanSettings(horizon=12))
    learner.collect()
    learner.resetting.zero_()  # TorchRL resets within the step that ends an episode
    values, advantages = learner._advantages()
    after = torch.cat([values[1:], learner.critic(learner.next_obs).squeeze(-1).detach()[None]])
    columns = (values, after, learner.rewards, learner.done, learner.terminated)
    expected, _ = generalized_advantage_estimate(0.99, 0.95, *(column.T.unsqueeze(-1) for column in columns))
    torch.testing.assert_close(advantages, expected.squeeze(-1).T)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    from bench._train_profile import profile_training

    folder = tmp_path_factory.mktemp("profile")
    cfg = config("env.name=cartpole_balance", *SMALL[1:], "compute.compile=off")
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield profile_training(cfg, folder, 3), folder
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def test_the_stages_of_a_profile_are_parts_of_the_iteration(profiled: tuple[dict[str, Any], Path]) -> None:
    metrics, _ = profiled
    for number in range(3):
        spent = {name.removeprefix("profile: "): one["rounds"][number] for name, one in metrics.items()}
        assert all(milliseconds > 0 and math.isfinite(milliseconds) for milliseconds in spent.values())
        assert spent["collect"] + spent["update"] <= spent["iteration"]
        assert spent["collect: policy"] + spent["collect: physics"] <= spent["collect"]
        assert spent["update: advantage"] + spent["update: minibatches"] <= spent["update"]


def test_a_profile_writes_a_chrome_trace(profiled: tuple[dict[str, Any], Path]) -> None:
    events = json.loads((profiled[1] / "trace.json").read_text())["traceEvents"]
    named = {event.get("name") for event in events}
    assert {"iteration", "collect: physics", "update: minibatches"} <= named


def test_a_config_that_is_its_own_best_size_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one of few steps has enough for a batch of its best size."""
    cfg = config("training.total_steps=65536")
    best = sized(OURS, cfg, 64)
    own = ExperimentConfig.model_validate(best.settings)
    assert sized(OURS, cfg, 2**16).settings["training"]["total_steps"] == 2**16 * 32
    comparison = Comparison("own", own, {OURS: best, PHYSICS: Entry(PHYSICS, best.settings)})
    monkeypatch.setattr(_train_plan, "_fastest", lambda name, cfg: (f"{name} x64", sized(name, cfg, 64)))
    assert list(_train_plan.with_best_sizes(comparison).entries) == [OURS, PHYSICS]


def test_an_env_with_its_own_physics_is_refused() -> None:
    arguments = argparse.Namespace(config=str(CONFIG), overrides=["env.name=gymnasium/Pendulum-v1"])
    with pytest.raises(UserError, match="'gymnasium/Pendulum-v1': brings its own physics"):
        _train_plan.load(arguments)
