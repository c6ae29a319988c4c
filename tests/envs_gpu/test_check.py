"""Every check of `envs_gpu.check` passes on a sound pair, and fails on one that breaks what it checks."""

import copy
import re

import pytest
import torch

from envs_gpu import check, parity
from envs_gpu.check import CHECKS, Pair, check_pair

NUM_WORLDS = 4


class Broken(Pair):
    """Cart-pole on C MuJoCo, under any backend's name, with every env changed by `spoil`."""

    def __init__(self, spoil, backend="mujoco"):
        super().__init__("cartpole_balance", backend, NUM_WORLDS)
        self._spoil = spoil

    def make(self, num_worlds, seed=check.SEED):
        name, self.backend = self.backend, "mujoco"
        env = super().make(num_worlds, seed)
        self.backend = name
        self._spoil(env)
        return env


def every_step(change):
    """What the step gave is what `change(env, result, number of the step)` makes of it."""

    def spoil(env):
        step, count = env.step, [0]

        def changed(action):
            count[0] += 1
            return change(env, step(action), count[0])

        env.step = changed

    return spoil


def with_reward(function):
    return every_step(lambda env, result, count: result._replace(reward=function(env, result, count)))


def break_late(env, result, count):
    broken = torch.zeros(env.num_envs).index_fill(0, torch.tensor([1]), float(count == 40))
    return result._replace(metrics=result.metrics | {"physics/broken": broken})


def lose_reward(env, result, count):
    return result._replace(reward=torch.where(torch.tensor(count == 40), torch.nan, result.reward))


def weigh_more(env):
    """Physics of a model with 1 % more gravity, that says it is the scene's."""
    physics = env.physics
    heavy = copy.copy(physics.model)
    heavy.opt.gravity[2] *= 1.01
    env.physics = type(physics)(heavy, env.num_envs, env.device, physics.options)
    env.physics.model = physics.model
    physics.close()


def overflow_one(env):
    env.physics.room = (1, 1)
    pop = env.pop_metrics
    env.pop_metrics = lambda: pop() | {"physics/overflow": 1}


SPOILED = {
    "spec": [
        (with_reward(lambda env, result, count: result.reward.double()), "reward"),
        (every_step(lambda env, result, count: result._replace(obs=result.obs[:, None])), "shapes of obs"),
    ],
    "same seed": [(with_reward(lambda env, result, count: result.reward + torch.rand(())), "same seed")],
    "alone": [(with_reward(lambda env, result, count: result.reward + env.num_envs), "N=1 differs")],
    "permuted": [
        (with_reward(lambda env, result, count: result.reward + torch.arange(env.num_envs)), "permuting")
    ],
    "final_obs": [
        (every_step(lambda env, result, count: result._replace(final_obs=result.obs)), "final_obs is not"),
        (
            every_step(lambda env, result, count: result._replace(obs=result.final_obs)),
            "sees after the reset",
        ),
        (
            every_step(
                lambda env, result, count: result._replace(truncated=torch.zeros(env.num_envs).bool())
            ),
            "ends no episode",
        ),
    ],
    "continues": [(with_reward(lambda env, result, count: result.reward + count), "a continued run differs")],
    "1,000 steps": [(every_step(break_late), "world [1] blew up"), (every_step(lose_reward), "not finite")],
    "overflow": [(overflow_one, "in 1 of 4 worlds")],
}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(check, "LONG_STEPS", 60)


def findings(pair):
    return {finding.check: finding for finding in check_pair(pair)}


def test_a_sound_pair_passes_every_check():
    heard = []
    pair = Broken(lambda env: None)
    found = list(check_pair(pair, heard.append))
    assert heard == [finding.check for finding in found] == list(CHECKS)
    assert {finding.check: finding.status for finding in found} == dict.fromkeys(CHECKS, "ok") | {
        "drift": "skipped"
    }


@pytest.mark.parametrize(
    ("name", "spoil", "problem"),
    [(name, *case) for name, cases in SPOILED.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_check_looks_for_fails_it(name, spoil, problem):
    pair = Broken(spoil)
    if name == "overflow":
        CHECKS["1,000 steps"](pair)
    with pytest.raises(check.CheckFailedError, match=re.escape(problem)):
        CHECKS[name](pair)


def test_every_check_is_shown_to_fail():
    assert {*SPOILED, "drift"} == CHECKS.keys()


def test_drift_is_named_or_fails(monkeypatch):
    status, _ = CHECKS["drift"](Broken(lambda env: None, backend="warp"))
    assert status == "ok"
    pair = Broken(weigh_more, backend="warp")
    with pytest.raises(check.CheckFailedError, match="rounding accounts for; 1 times may be"):
        CHECKS["drift"](pair)
    monkeypatch.setitem(parity.DEVIATIONS, ("cartpole_balance", "warp"), (1e9, "gravity is 1 % off"))
    status, detail = CHECKS["drift"](pair)
    assert status == "named"
    assert "gravity is 1 % off" in detail
    monkeypatch.setitem(parity.DEVIATIONS, ("cartpole_balance", "warp"), (1.1, "gravity is 1 % off"))
    with pytest.raises(check.CheckFailedError, match=r"1\.1 times may be"):
        CHECKS["drift"](pair)


def test_an_exception_is_a_finding_and_the_rest_goes_on():
    def spoil(env):
        env.state_dict = lambda: 1 / 0

    found = findings(Broken(spoil))
    assert found["continues"].status == "failed"
    assert "ZeroDivisionError" in found["continues"].detail
    assert found["same seed"].status == "ok"
