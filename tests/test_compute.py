"""What a run's hardware plan says when the machine cannot give what was asked for."""

import os

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


def test_compiled_code_goes_where_it_can_be_run(monkeypatch, tmp_path):
    """A temporary folder that runs nothing (`noexec`) is left for one in the user's own cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = os.statvfs

    class Noexec:
        def __init__(self, folder):
            self.f_flag = os.ST_NOEXEC if str(folder).endswith("tmp") else found(folder).f_flag

    monkeypatch.setattr(os, "statvfs", Noexec)
    assert compute._missing_for_compile() is None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "home/.cache/pi_incubator/torchinductor")


def test_without_a_folder_for_compiled_code_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc/nowhere")
    monkeypatch.setenv("HOME", "/proc/nowhere")
    long = {"total_steps": 10_000_000}
    plan = plan_compute(config(training=long, compute={"device": "cpu"}))
    assert not plan.compiled
    assert any("there is no folder for compiled code (TORCHINDUCTOR_CACHE_DIR)" in r for r in plan.reasons)
    with pytest.raises(
        SettingError, match=r"compute\.compile = 'on': torch\.compile needs folder for compiled"
    ):
        plan_compute(config(training=long, compute={"device": "cpu", "compile": "on"}))


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_is_named_with_its_index(monkeypatch, asked):
    """Warp and JAX look a GPU up by its index, and every rank has another one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    cfg = ExperimentConfig.model_validate({"compute": {"device": asked}})
    device, reason = compute._choose_device(cfg)
    assert device == torch.device("cuda", 3)
    assert "cuda:3" in reason
    assert compute.uses_cuda(cfg)


@pytest.mark.parametrize("asked", ["none", "auto", "bfloat16"])
@pytest.mark.parametrize("instructions", [{}, {"avx512_bf16": False}, {"amx_bf16": True}, {"bf16": True}])
def test_bfloat16_is_chosen_where_cores_multiply_it(asked, instructions, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    plan = plan_compute(config(compute={"device": "cpu", "autocast": asked}))
    fast = any(instructions.values())
    assert plan.autocast == ("bfloat16" if asked == "bfloat16" or (asked == "auto" and fast) else "none")
    assert plan.resolved()["resolved.autocast"] == plan.autocast
    assert any(reason.startswith("precision: ") for reason in plan.reasons) == (asked != "none")
