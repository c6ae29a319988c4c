"""Broken worlds in the learner and in the loop: they teach nothing, and too many stop the run in time."""

from pathlib import Path

import pytest
import torch

from envs_gpu.errors import BrokenWorldsError
from envs_gpu.make import make_env
from pi_incubator import checkpoint
from pi_incubator.algorithms.ppo import PPO
from pi_incubator.cli._main import run
from pi_incubator.cli.train import main
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import DivergedError
from pi_incubator.run_folder import RunFolder
from pi_incubator.training import algorithm as algorithm_module
from pi_incubator.training import on_policy
from pi_incubator.training.minibatches import compact_valid
from tests.learning import make_algorithm, state_of

ROOT = Path(__file__).parents[2]
NUM_ENVS, HORIZON = 4, 12
BROKEN = [(4, 1), (HORIZON - 1, 2)]  # (t, world): in mid-rollout and at its end


def make_setting(**algorithm):
    cfg = ExperimentConfig.model_validate(
        {
            "env": {"name": "ant", "num_envs": NUM_ENVS},
            "algorithm": {"horizon": HORIZON, "minibatch_size": 16, "entropy_coef": 0.01} | algorithm,
        }
    )
    torch.manual_seed(0)
    env = make_env("ant", num_envs=NUM_ENVS, device=torch.device("cpu"), seed=0)
    return cfg, make_algorithm(cfg, env)


def collect_broken(ppo, broken=BROKEN):
    """A rollout in which these worlds break at these times."""
    env = ppo.env
    step, time = env.step, iter(range(HORIZON))

    def step_and_break(action):
        t = next(time)
        for when, world in broken:
            if when == t:
                env.physics.state.qvel[world] = torch.nan
        return step(action)

    env.step = step_and_break
    ppo.collect()
    env.step = step
    return ppo.rollout.data


@pytest.mark.parametrize("reward_scale", [1.0, 0.1])
def test_a_broken_step_has_no_advantage_and_biases_no_other(reward_scale):
    """The steps before it are those of a rollout that ends there and is bootstrapped with the last value."""
    cfg, ppo = make_setting(reward_scale=reward_scale, normalize_advantage=False)
    data = collect_broken(ppo)
    expected = data["next", "reward"].clone().double() * reward_scale
    ppo.advantage(data)
    gamma, decay = cfg.algorithm.gamma, cfg.algorithm.gamma * cfg.algorithm.gae_lambda
    for t, world in BROKEN:
        assert not data["valid"][t, world]
        assert data["next", "done"][t, world]
        assert data["advantage"][t, world] == 0
        value = data["state_value"][:, world].double()
        following = 0.0
        for before in reversed(range(t)):
            delta = expected[before, world] + gamma * value[before + 1] - value[before]
            following = delta + decay * following
            actual = data["advantage"][before, world].double()
            torch.testing.assert_close(actual, following, rtol=1e-5, atol=1e-5)
    assert data["valid"].sum() == HORIZON * NUM_ENVS - len(BROKEN)


def test_normalization_leaves_broken_steps_out():
    _, ppo = make_setting()
    data = collect_broken(ppo)
    ppo.advantage(data)
    valid = data["valid"]
    assert (data["advantage"][~valid] == 0).all()
    assert data["advantage"][valid].mean().abs() < 1e-6
    assert data["advantage"][valid].std() == pytest.approx(1.0, abs=1e-5)


def test_no_number_of_a_broken_step_reaches_the_update():
    """Poisoned in every entry, they change no bit of weights, moments, metrics or normalizers."""
    results = []
    for poison in (False, True):
        _, ppo = make_setting()
        data = collect_broken(ppo)
        ppo.advantage(data)
        if poison:
            for name in ("policy", "action", "action_log_prob", "advantage", "value_target", "state_value"):
                data[name][~data["valid"].squeeze(-1)] = torch.nan
        results.append(ppo.learn(data) | state_of(ppo))
    clean, poisoned = results
    for name, value in clean.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, poisoned[name]), name


def test_the_normalizer_sees_no_broken_world():
    _, ppo = make_setting()
    seen, normalizer = [], ppo.policy.normalizer
    observe = normalizer.observe
    normalizer.observe = lambda obs, *rest: (seen.append(obs["policy"].clone()), observe(obs, *rest))
    collect_broken(ppo, [(t, w) for t in range(HORIZON) for w in range(NUM_ENVS)])
    normalizer.commit()
    assert len(seen) == HORIZON
    assert torch.stack(seen).abs().max() < 100
    assert all(value.isfinite().all() for value in ppo.policy.state_dict().values())


@pytest.mark.parametrize("num_broken", [0, 1, 3, 15, 16])
@pytest.mark.parametrize("on_device", [False, True])
def test_only_valid_samples_stay_in_their_order(num_broken, on_device, monkeypatch):
    generator = torch.Generator().manual_seed(num_broken)
    order = torch.randperm(16, generator=generator)
    valid = torch.ones(16, dtype=torch.bool)
    valid[torch.randperm(16, generator=generator)[:num_broken]] = False
    if on_device:  # the path without a look
        monkeypatch.setattr(torch.Tensor, "all", lambda self: torch.zeros((), dtype=torch.bool))
    chosen = compact_valid(valid, order)
    kept = [index for index in order.tolist() if valid[index]]
    if kept:
        assert chosen.tolist() == (kept * 16)[:16]
    else:
        assert set(chosen.tolist()) <= set(range(16))
    assert (chosen.tolist() == order.tolist()) or num_broken


TINY = [
    "env.num_envs=4",
    "algorithm.horizon=16",
    "algorithm.minibatch_size=32",
    "algorithm.num_epochs=1",
    "training.total_steps=640",
    "training.log_every=4",
    "checkpoint.save_every=1",
    "checkpoint.keep=20",
    "tracking.backend=none",
]


def arguments(tmp_path, *overrides):
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=guarded"]
    return ["--config", str(ROOT / "configs" / "ppo" / "cartpole_balance.yaml"), *TINY, *place, *overrides]


def break_from(monkeypatch, iteration, worlds):
    """From this iteration on, the state of these worlds is gone at the end of every rollout."""
    plain, calls = on_policy.collect, iter(range(1000))

    def collect_and_break(env, policy, act, rollout):
        if next(calls) >= iteration:
            env.physics.state.qvel[worlds] = torch.nan
        plain(env, policy, act, rollout)

    monkeypatch.setattr(on_policy, "collect", collect_and_break)


@pytest.mark.parametrize("worlds", [slice(None), slice(0, 3)], ids=["all", "three of four"])
def test_a_run_stops_before_it_saves_what_broken_worlds_taught(tmp_path, monkeypatch, capsys, worlds):
    """Though no report is due: the checkpoint asks. What stays is the one from before, and it loads."""
    break_from(monkeypatch, 2, worlds)
    with pytest.raises(SystemExit) as ended:
        run(main, arguments(tmp_path))
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    num_broken = 4 if worlds == slice(None) else 3
    assert f"{num_broken} of 4 worlds" in line
    assert "guards.max_broken_share = 0.5" in line
    folder = RunFolder(tmp_path / "guarded")
    (dump,) = folder.broken.glob("*.npz")
    assert str(dump) in line
    assert [path.name for path in folder.saved()] == ["iter_00000000", "iter_00000001"]
    assert checkpoint.next_iteration(folder) == 2


def test_fewer_broken_worlds_do_not_stop_a_run(tmp_path, monkeypatch):
    break_from(monkeypatch, 2, slice(0, 2))
    overrides = ["guards.max_dumps=1", "evaluation.num_episodes=1", "evaluation.video=false"]
    main(arguments(tmp_path, *overrides, "deployment.export=none", "evaluation.curve=false"))
    folder = RunFolder(tmp_path / "guarded")
    assert len(folder.saved()) == 10
    assert len(list(folder.broken.iterdir())) == 1


def poison_after(monkeypatch, iteration):
    """From this update on, a weight of the actor is NaN."""
    plain = PPO.learn

    def learn(self, data):
        metrics = plain(self, data)
        if self.num_updates > iteration:
            next(self.policy.head.parameters()).data.view(-1)[0] = torch.nan
        return metrics

    monkeypatch.setattr(PPO, "learn", learn)


def test_a_policy_that_is_nan_is_never_saved(tmp_path, monkeypatch):
    """Found right after the update, before any world has felt it."""
    poison_after(monkeypatch, 2)
    with pytest.raises(DivergedError, match="not finite"):
        main(arguments(tmp_path))
    assert checkpoint.next_iteration(RunFolder(tmp_path / "guarded")) == 2


def test_the_worlds_of_a_policy_that_is_nan_are_broken(tmp_path, monkeypatch):
    poison_after(monkeypatch, 2)
    monkeypatch.setattr(algorithm_module, "check_finite", lambda model: None)
    with pytest.raises(BrokenWorldsError, match=r"their action.*lower algorithm.lr"):
        main(arguments(tmp_path, "checkpoint.save_every=5"))
    assert RunFolder(tmp_path / "guarded").saved() == []


def test_a_stopped_run_continues_from_the_checkpoint_before(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        break_from(patch, 2, slice(None))
        with pytest.raises(BrokenWorldsError):
            main(arguments(tmp_path))
    overrides = [
        "evaluation.num_episodes=1",
        "evaluation.video=false",
        "deployment.export=none",
        "evaluation.curve=false",
    ]
    main(arguments(tmp_path, *overrides, "guards.max_broken_share=0.9"))
    assert checkpoint.next_iteration(RunFolder(tmp_path / "guarded")) == 10
