"""Which hardware a run uses: chosen once, each choice with its reason in a sentence."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from envs_gpu.errors import SettingError
from envs_gpu.make import choose_backend, lacks_device
from envs_gpu.physics.mujoco import available_cores
from envs_gpu.pixels import choose_renderer
from envs_gpu.zoo import find, is_zoo_name
from kernels.warp_cache import can_write
from pi_incubator.config import ExperimentConfig

# Below this many environment steps compilation costs more than it saves on a CPU (about half a minute).
MIN_STEPS_TO_COMPILE = 500_000
MIN_CACHE_BYTES = 4 << 20
"""Room that compiling one run takes, at least."""


@dataclass(frozen=True)
class ComputePlan:
    """Device, threads and compilation of one run."""

    device: torch.device
    backend: str
    """Physics backend."""
    num_threads: int
    """CPU threads of one torch operation."""
    physics_threads: int
    """CPU threads that step worlds in the C backend."""
    compiled: bool
    """Whether act, the task's judgement and the loss go through `torch.compile`."""
    autocast: str
    """Type in which the update multiplies matrices: `none` (float32) or `bfloat16`."""
    reasons: tuple[str, ...]
    """Why, one sentence a choice."""

    def resolved(self) -> dict[str, object]:
        """What was chosen, by name, to be recorded with the run."""
        return {
            "resolved.device": str(self.device),
            "resolved.backend": self.backend,
            "resolved.num_threads": self.num_threads,
            "resolved.physics_threads": self.physics_threads,
            "resolved.compiled": self.compiled,
            "resolved.autocast": self.autocast,
        }


def plan_compute(cfg: ExperimentConfig) -> ComputePlan:
    """Choose what `cfg.compute` leaves open, and make torch use it.

    Raises:
        SettingError: compilation was asked for without a compiler, or torch has a GPU that JAX does not see.
    """
    device, device_reason = _choose_device(cfg)
    compiled, compile_reason = _choose_compile(cfg, device)
    physics_threads = cfg.compute.physics_threads or available_cores()
    # One thread: minibatches of PPO are too small to split, and barriers stall beside the physics threads.
    num_threads = cfg.compute.num_threads or 1
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("high" if cfg.compute.tf32 else "highest")
    threads_reason = f"threads: {num_threads} for torch, {physics_threads} for C physics"
    backend, backend_reason = choose_backend(cfg.env.backend, device, cfg.env.name)
    if lack := lacks_device(backend, device):
        fix = "pip install -e '.[cuda]', or set env.backend to warp"
        raise SettingError("env.backend", backend, lack, fix)
    autocast, precision_reason = choose_autocast(cfg, device)
    reasons = [device_reason, backend_reason, threads_reason, compile_reason]
    if precision_reason:
        reasons.append(precision_reason)
    if cfg.env.pixels:
        reasons.append(choose_renderer(cfg.env.pixels.renderer)[1])
    return ComputePlan(device, backend, num_threads, physics_threads, compiled, autocast, tuple(reasons))


def uses_cuda(cfg: ExperimentConfig) -> bool:
    """Whether the run's tensors will be on a GPU."""
    return _choose_device(cfg)[0].type == "cuda"


def _choose_device(cfg: ExperimentConfig) -> tuple[torch.device, str]:
    asked = cfg.compute.device
    if cfg.env.backend == "mujoco":
        return torch.device("cpu"), "device cpu: backend mujoco runs there"
    if is_zoo_name(cfg.env.name) and not find(cfg.env.name)[0].on_cuda:
        return torch.device("cpu"), f"device cpu: {cfg.env.name} runs there"
    if asked == "cpu":
        return torch.device("cpu"), "device cpu: as asked for"
    if asked == "cuda" or torch.cuda.is_available():
        # With its index: Warp and JAX ask for it, and under torchrun it differs between ranks.
        device = torch.device("cuda", torch.cuda.current_device())
        why = "as asked for" if asked == "cuda" else f"found {torch.cuda.get_device_name(device)}"
        return device, f"device {device}: {why}"
    return torch.device("cpu"), "device cpu: torch finds no CUDA device"


def choose_autocast(cfg: ExperimentConfig, device: torch.device) -> tuple[str, str | None]:
    """In which type the update multiplies matrices, and why; no reason for plain float32 on a CPU."""
    asked = cfg.compute.autocast
    if asked == "bfloat16":
        return asked, "precision: the update multiplies matrices in bfloat16, as asked for"
    if asked == "auto" and multiplies_bfloat16(device):
        return "bfloat16", "precision: the update multiplies matrices in bfloat16, which is fast here"
    if device.type == "cuda":
        reason = f"precision: float32, its matrix products {'in TF32' if cfg.compute.tf32 else 'in full'}"
        return "none", reason
    if asked == "auto":
        return "none", "precision: float32, since these cores have no instruction for bfloat16"
    return "none", None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions that multiply bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch 2.11 does not list what a CPU can do.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _choose_compile(cfg: ExperimentConfig, device: torch.device) -> tuple[bool, str]:
    asked = cfg.compute.compile
    missing = _missing_for_compile() if device.type == "cpu" else None
    if asked == "on" and missing:
        problem = f"torch.compile needs {missing}, not found here"
        raise SettingError("compute.compile", asked, problem, "install it, or set this to auto")
    if asked != "auto":
        return asked == "on", f"torch.compile {asked}: as asked for"
    if missing:
        return False, f"torch.compile off: there is no {missing} (with it updates are about 3 times faster)"
    if device.type == "cpu" and cfg.training.total_steps < MIN_STEPS_TO_COMPILE:
        return False, f"torch.compile off: fewer than {MIN_STEPS_TO_COMPILE:,} steps do not repay it"
    return True, "torch.compile on: what is computed at every step is compiled"


def _missing_for_compile() -> str | None:
    """What torch.compile lacks on a CPU: its compiler, or the header that its code includes."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"C++ compiler {compiler}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"{header} (the package python3-dev)"
    return None if _choose_compile_cache() else "folder for compiled code (TORCHINDUCTOR_CACHE_DIR)"


def _choose_compile_cache() -> bool:
    """Whether there is a folder for compiled code; the first that can be used is set for torch.compile."""
    try:
        usual = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()
        # The compiler writes there too, whatever the cache.
        if not can_write(Path(tempfile.gettempdir()), MIN_CACHE_BYTES):
            return False
        own = Path("~/.cache/pi_incubator/torchinductor").expanduser()
    except (OSError, RuntimeError):  # there is no temporary folder, or no home
        return False
    for folder in (Path(usual), own):
        if can_write(folder, MIN_CACHE_BYTES) and not os.statvfs(folder).f_flag & os.ST_NOEXEC:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
            return True
    return False
