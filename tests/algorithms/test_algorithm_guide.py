"""The algorithm in docs/algorithms.md, taken from the page: it registers, trains and is saved."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from envs_gpu.make import make_env
from pi_incubator.config import ExperimentConfig
from pi_incubator.registry import algorithms
from tests.learning import make_algorithm, state_of

GUIDE = Path(__file__).parents[2] / "docs" / "algorithms.md"
FILES = ("pi_incubator/config/algorithms/vpg.py", "pi_incubator/algorithms/vpg.py")


@pytest.fixture
def settings(monkeypatch):
    """The settings class of the page; the algorithm is registered for one test."""
    monkeypatch.setattr(algorithms, "_entries", dict(algorithms._entries))
    for file in FILES:
        name = file.removesuffix(".py").replace("/", ".")
        (code,) = re.findall(
            rf"`{file}`:\n\n```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
        )
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(code, f"{GUIDE}: {file}", "exec"), module.__dict__)
    return sys.modules["pi_incubator.config.algorithms.vpg"].VPGSettings


def test_it_trains_like_any_other(settings):
    """Two iterations: metrics are finite, the policy changes, and everything that is learned is saved."""
    torch.manual_seed(0)
    cfg = ExperimentConfig.model_validate(
        {"env": {"name": "cartpole_balance", "num_envs": 8}, "network": {"hidden_sizes": [8]}}
    )
    cfg = cfg.model_copy(update={"algorithm": settings(horizon=8)})
    cfg.algorithm.check(cfg)
    vpg = make_algorithm(cfg, make_env("cartpole_balance", num_envs=8, device=torch.device("cpu")))
    before = state_of(vpg)
    for _ in range(2):
        vpg.collect()
        metrics = vpg.update()
    assert set(metrics) == {"loss/policy", "loss/value", "policy/entropy"}
    assert torch.stack(list(metrics.values())).isfinite().all()
    after = state_of(vpg)
    for part in ("policy", "critic", "optimizer"):
        assert any(
            not torch.equal(value, before[name]) for name, value in after.items() if name.startswith(part)
        )
    vpg.close()
