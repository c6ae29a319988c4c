"""What a run's hardware plan says when the machine cannot give what was asked for."""

import jax
import pytest
import torch

from envs_gpu.errors import SettingError
from pi_incubator import compute
from pi_incubator.compute import plan_compute
from pi_incubator.config import ExperimentConfig


def config(**sections):
    return ExperimentConfig.model_validate(sections)


@pytest.fixture(autouse=True)
def keep_torch_settings():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def test_mjx_needs_a_jax_that_sees_the_gpu(monkeypatch):
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX has a GPU")
    monkeypatch.setattr(compute, "_choose_device", lambda cfg: (torch.device("cuda"), "device cuda"))
    with pytest.raises(SettingError, match=r"env\.backend = 'mjx': .* installed JAX has none; pip install"):
        plan_compute(config(env={"backend": "mjx"}))
    assert plan_compute(config(env={"backend": "warp"})).backend == "warp"


def test_the_plan_gives_every_choice_a_reason():
    plan = plan_compute(config(compute={"device": "cpu", "num_threads": 1, "physics_threads": 3}))
    assert (plan.device.type, plan.backend, plan.physics_threads) == ("cpu", "mujoco", 3)
    assert torch.get_num_threads() == 1
    assert [reason.split()[0] for reason in plan.reasons] == [
        "device",
        "backend",
        "threads:",
        "torch.compile",
    ]
