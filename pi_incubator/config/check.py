"""Checks of a config against what is installed here; no simulator and no network is imported for them."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from envs_gpu.model_names import is_collected
from envs_gpu.physics import BACKENDS
from envs_gpu.registry import Registry, UnknownNameError
from envs_gpu.tasks import TASKS
from envs_gpu.zoo import ZooError, find, is_zoo_name
from pi_incubator.config.errors import ConfigError
from pi_incubator.config.loader import Sources, load_with_sources
from pi_incubator.config.models import ExperimentConfig
from pi_incubator.registry import algorithms, networks, trackers

REGISTRIES: dict[str, Registry] = {
    "env.name": TASKS,
    "env.backend": BACKENDS,
    "network.name": networks,
    "algorithm.name": algorithms,
    "tracking.backend": trackers,
}
# What each backend imports, and what installs it.
REQUIREMENTS = {
    "mujoco": (("mujoco",), "-e ."),
    "warp": (("warp", "mujoco_warp"), "-e ."),
    "mjx": (("jax", "mujoco.mjx"), "-e '.[mjx]'"),
    "newton": (("newton", "mujoco_warp"), "-e '.[newton]'"),
}


def load_checked(path: str | Path, overrides: Sequence[str] = ()) -> tuple[ExperimentConfig, Sources]:
    """The config of a run: loaded, its names checked, its output folder made; and where its values came from.

    Raises:
        ConfigError: the first mistake found.
    """
    cfg, sources = load_with_sources(path, overrides)
    check_names(cfg, sources)
    validate_run(cfg, sources)
    return cfg, sources


def check_names(cfg: ExperimentConfig, sources: Mapping[str, str]) -> None:
    """Check that everything the config names exists on this machine.

    Args:
        cfg: the config.
        sources: where each value came from, for the message; see `load_with_sources`.

    Raises:
        ConfigError: an unknown name, a backend whose package is missing, or cuda without a GPU.
    """
    for field, registry in REGISTRIES.items():
        name, known = _value(cfg, field), registry.names()
        if field == "env.name" and is_zoo_name(name):
            _check_zoo(cfg, sources)
        elif name not in known and (field, name) != ("env.backend", "auto"):
            unknown = UnknownNameError(registry.kind, name, known)
            raise _error(cfg, sources, field, f"unknown {registry.kind}", unknown.fix)
    _check_model(cfg, sources)
    for backend, field in _backends(cfg):
        if lack := lacking(backend):
            fix = f"{lack[1]}, or set env.backend to auto"
            raise _error(cfg, sources, field, f"needs {lack[0]}, not installed here", fix)
    if cfg.compute.device == "cuda" and cfg.env.backend == "mujoco":
        fix = "set it to auto or cpu, or env.backend to warp"
        raise _error(cfg, sources, "compute.device", "backend mujoco runs on the CPU", fix)
    if cfg.compute.device == "cuda":
        import torch  # slow to import, and only this check needs it

        if not torch.cuda.is_available():
            fix = "set it to auto or cpu, or check the driver"
            raise _error(cfg, sources, "compute.device", "torch finds no CUDA device", fix)


def _check_model(cfg: ExperimentConfig, sources: Mapping[str, str]) -> None:
    """Check that the files of the robot are there; one of a collection is looked for when it is needed."""
    model, root = cfg.env.model, cfg.env.model_root
    if model is not None and not is_collected(model) and not os.path.isfile(os.path.expanduser(model)):
        fix = "name an MJCF file, relative to the working directory"
        raise _error(cfg, sources, "env.model", "no such file", fix)
    if root is not None and not os.path.isdir(os.path.expanduser(root)):
        fix = "name a folder, relative to the working directory"
        raise _error(cfg, sources, "env.model_root", "no such folder", fix)


def _check_zoo(cfg: ExperimentConfig, sources: Mapping[str, str]) -> None:
    """Check an env of a family written elsewhere; lists the family's envs, and so imports its package."""
    try:
        family, _ = find(cfg.env.name)
    except UnknownNameError as error:
        raise _error(cfg, sources, "env.name", f"unknown {error.kind}", error.fix) from None
    except ZooError as error:
        raise _error(cfg, sources, "env.name", error.problem, error.fix) from None
    if cfg.env.backend != "auto":
        problem = f"{cfg.env.name} brings its own physics"
        raise _error(cfg, sources, "env.backend", problem, "set it to auto, or name one of our own tasks")
    if cfg.compute.device == "cuda" and not family.on_cuda:
        fix = "set it to auto or cpu"
        raise _error(cfg, sources, "compute.device", f"{cfg.env.name} runs on the CPU", fix)


def lacking(backend: str) -> tuple[str, str] | None:
    """The packages that `backend` lacks here, and the command that installs them; None if it lacks none."""
    modules, package = REQUIREMENTS[backend]
    missing = [module for module in modules if not _installed(module)]
    return (" and ".join(missing), f"pip install {package}") if missing else None


def validate_run(cfg: ExperimentConfig, sources: Mapping[str, str]) -> None:
    """Make the run's folder and check that files can be written there.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.run_dir):
            pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"cannot write to {cfg.run_dir} ({reason})"
        fix = "name a folder you can write to"
        raise _error(cfg, sources, "experiment.output_dir", problem, fix) from None


def _value(cfg: ExperimentConfig, field: str) -> str:
    section, key = field.split(".")
    return str(getattr(getattr(cfg, section), key))


def _error(
    cfg: ExperimentConfig, sources: Mapping[str, str], field: str, problem: str, fix: str
) -> ConfigError:
    return ConfigError(sources.get(field, "default"), field, _value(cfg, field), problem=problem, fix=fix)


def _backends(cfg: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Yield each backend whose packages the run needs, with the field that asks for it."""
    if cfg.env.backend != "auto":
        yield cfg.env.backend, "env.backend"
    if cfg.env.backend == "mjx" and cfg.env.mjx_impl == "warp":
        yield "warp", "env.mjx_impl"


def _installed(module: str) -> bool:
    """Whether `module` can be imported, found without importing its parents."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for part in rest:
        if spec is None:
            return False
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec is not None
