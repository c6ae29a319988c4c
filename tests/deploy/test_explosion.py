"""The gate `sim_to_sim` tells an engine that blew up from a policy that is bad."""

import math

import pytest
import torch

from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.gates import _simulator, sim_to_sim
from pi_incubator.deploy.record import Recording
from tests.mjcf import EXPLODES


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    """Largest share of broken worlds -> what the simulator's process is asked, for robots at full force."""
    model = tmp_path / "robot.xml"
    model.write_text(EXPLODES)
    contract = type("Contract", (), {"safe_target": (0.0, 0.0)})()
    monkeypatch.setattr(_simulator, "read_bundle", lambda _: type("Bundle", (), {"contract": contract})())
    monkeypatch.setattr(_simulator, "RobotLink", lambda url, contract: None)

    class FullForce:
        def __init__(self, links, *_):
            self.links = links

        def initial_state(self, num_worlds):
            return torch.zeros(num_worlds, 0)

        def mean(self, obs, state):
            return torch.ones(len(self.links), 2), state

    monkeypatch.setattr(_simulator, "Robots", FullForce)

    def request_of(max_broken_share):
        sections = {
            "env": {"name": "hold_pose", "model": str(model)},
            "guards": {"max_broken_share": max_broken_share},
            "compute": {"physics_threads": 1},
        }
        config = tmp_path / "config.yaml"
        config.write_text(ExperimentConfig.model_validate(sections).model_dump_json(by_alias=True))
        asked = {"config": str(config), "bundle": "", "links": ["a", "b"], "num_episodes": 2}
        return asked | {"seed": 1, "latency_s": 0.0, "noise": [0.0]}

    return request_of


@pytest.mark.parametrize("max_broken_share", [0.5, 1.0])
def test_the_simulator_counts_what_blew_up(request_of, max_broken_share):
    found = _simulator.simulate(request_of(max_broken_share))
    if max_broken_share < 1:
        assert found["return"] is None
        assert "2 of 2 worlds" in found["broken"]
    else:
        assert math.isfinite(found["return"])
        assert found["broken_episodes"] == 2


class Candidate:
    reference, num_episodes, recording = 100.0, 4, Recording(*[torch.zeros(1, 1, 1).numpy()] * 3)


@pytest.mark.parametrize(
    ("found", "passed", "error"),
    [
        ({"return": 99.0, "broken_episodes": 0}, True, None),
        ({"return": 50.0, "broken_episodes": 0}, False, None),
        (
            {"return": 50.0, "broken_episodes": 3},
            False,
            "C MuJoCo blew up in 3 of 4 episodes; lower the model's",
        ),
        (
            {"return": None, "broken_episodes": None, "broken": "why"},
            False,
            "so there is no return: why; lower",
        ),
    ],
)
def test_the_gate_says_that_the_engine_blew_up(monkeypatch, found, passed, error):
    monkeypatch.setattr(sim_to_sim, "_run", lambda _: (found | {"latency_ms": 5.0}, 0.0))
    result = sim_to_sim.sim_to_sim(Candidate())
    assert result.passed == passed
    assert ("error" in result.details) == (error is not None)
    assert (error or "") in result.details.get("error", "")
