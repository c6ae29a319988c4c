"""Settings that have no effect in the chosen combination: each is refused in one line, never ignored.

A setting is refused where it is not the default, and what it asks for would not happen. So `compute.tf32 =
false` on a CPU is not refused: nothing is rounded there. Neither is what only a command reads, such as
`evaluation.video_length_s` without `evaluation.video`: `pi-eval --video` reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from pi_incubator.config.randomization import RandomizationSection
from pi_incubator.config.section import cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig

REMOVE = "remove it"


class Rule(NamedTuple):
    """When a setting has no effect."""

    field: str
    problem: Callable[[ExperimentConfig], str | None]
    """Why it has none; None where it has one."""
    fix: str = REMOVE


def _own_task(cfg: ExperimentConfig) -> str | None:
    if "/" in cfg.env.name:
        return f"has no effect on {cfg.env.name}, which brings its own physics and observations"
    return None


def _has_room(cfg: ExperimentConfig) -> str | None:
    backend, impl = cfg.env.backend, cfg.env.mjx_impl
    if backend == "mujoco" or (backend == "mjx" and impl == "jax"):
        name = f"{backend} with env.mjx_impl = {impl}" if backend == "mjx" else backend
        return f"has no effect with env.backend = {name}, which has room for all of them"
    return _own_task(cfg)


def _mjx_impl(cfg: ExperimentConfig) -> str | None:
    return None if cfg.env.backend == "mjx" else f"has no effect with env.backend = {cfg.env.backend}"


def _has_model(cfg: ExperimentConfig) -> str | None:
    return None if cfg.env.model is not None else "has no effect with env.model = null"


def _policy_group(cfg: ExperimentConfig) -> str | None:
    if not cfg.network.reads_vectors:
        return f"has no effect with network.name = {cfg.network.name}, which sees pixels alone"
    return _own_task(cfg)


def _frame_gap(cfg: ExperimentConfig) -> str | None:
    pixels = cfg.env.pixels
    return "has no effect with env.pixels.frames = 1" if pixels and pixels.frames == 1 else None


def _history_steps(cfg: ExperimentConfig) -> str | None:
    return _own_task(cfg) if cfg.guards.max_dumps else "has no effect with guards.max_dumps = 0"


def _max_dumps(cfg: ExperimentConfig) -> str | None:
    return _own_task(cfg) if cfg.guards.max_dumps else None


def _uri(cfg: ExperimentConfig) -> str | None:
    return "has no effect with tracking.backend = none" if cfg.tracking.backend == "none" else None


def _normalize_observations(cfg: ExperimentConfig) -> str | None:
    if cfg.network.sees_pixels and cfg.network.normalize_observations:
        return f"has no effect with network.name = {cfg.network.name}: pixels are not normalized"
    return None


def _observation_clip(cfg: ExperimentConfig) -> str | None:
    if not cfg.network.reads_vectors:
        return f"has no effect with network.name = {cfg.network.name}: pixels are not normalized"
    if not cfg.network.normalize_observations:
        return "has no effect with network.normalize_observations = false"
    return None


def _activation(cfg: ExperimentConfig) -> str | None:
    network = cfg.network
    sizes = getattr(network, "hidden_sizes", ())
    if network.has_state and not network.embeds and len(sizes) == 1:
        return f"has no effect with network.hidden_sizes = {list(sizes)}: no layer follows the recurrent one"
    return None


def _max_rate(cfg: ExperimentConfig) -> str | None:
    if cfg.network.acts_on_pixels:
        return f"has no effect with network.name = {cfg.network.name}: its export has no runtime contract"
    return None


def _state_dependent_std(cfg: ExperimentConfig) -> str | None:
    if cfg.algorithm.has_gaussian_policy:
        return None
    return f"has no effect with algorithm.name = {cfg.algorithm.name}, whose policy is another one"


def _dataset(cfg: ExperimentConfig) -> str | None:
    if cfg.algorithm.reads_dataset:
        return None
    return f"has no effect with algorithm.name = {cfg.algorithm.name}, which learns from its own steps"


def _launched(cfg: ExperimentConfig) -> str | None:
    return "has no effect with compute.launcher = none" if cfg.compute.launcher == "none" else None


LAUNCHED = ("num_workers", "cpus_per_worker", "gpus_per_worker", "max_restarts", "cluster")
"""Settings of `compute` for a launcher."""

RULES = (
    Rule("env.mjx_impl", _mjx_impl, "remove it, or set env.backend to mjx"),
    Rule("env.keyframe", _has_model),
    Rule("env.max_contacts", _has_room),
    Rule("env.max_constraints", _has_room),
    Rule("env.episode_length_s", _own_task),
    Rule("env.observation_history", _policy_group),
    Rule("env.task", _own_task),
    Rule("env.model_root", _has_model),
    Rule("env.limits", _has_model),
    Rule("env.pixels", _own_task),
    Rule("env.pixels.frame_gap", _frame_gap),
    Rule("guards.history_steps", _history_steps),
    Rule("guards.max_dumps", _max_dumps),
    Rule("guards.energy_margin", _own_task),
    *(Rule(f"compute.{name}", _launched, "remove it, or add --launcher ray") for name in LAUNCHED),
    Rule("randomization.observation_noise", _policy_group),
    *(Rule(f"randomization.{name}", _own_task) for name in RandomizationSection.model_fields),
    Rule("network.normalize_observations", _normalize_observations),
    Rule("network.observation_clip", _observation_clip),
    Rule("network.activation", _activation),
    Rule("network.state_dependent_std", _state_dependent_std),
    Rule("dataset.path", _dataset, "remove it, or set algorithm.name to iql or another offline one"),
    Rule("compute.physics_threads", _own_task),
    Rule("tracking.uri", _uri, "remove it, or set tracking.backend to mlflow"),
    Rule("deployment.max_rate_per_s", _max_rate),
)
"""Of all algorithms; `AlgorithmSettings.unused` and `AlgorithmSettings.check` add those of one algorithm."""


def training_worlds_only() -> tuple[str, ...]:
    """Settings that only training worlds read; a policy is judged without them."""
    return ("env.episode_length_s", *(f"randomization.{name}" for name in RandomizationSection.model_fields))


def check_effects(cfg: ExperimentConfig) -> None:
    """Refuse what has no effect.

    Raises:
        PydanticCustomError: of `cross_field_error`, for the first such setting.
    """
    for rule in RULES:
        if is_default(cfg, rule.field):
            continue
        if problem := rule.problem(cfg):
            value = shown(value_of(cfg, rule.field))
            raise cross_field_error(field=rule.field, value=value, problem=problem, fix=rule.fix)


def value_of(cfg: ExperimentConfig, field: str) -> Any:
    """The value of a dotted name; None within a section that is null."""
    value: Any = cfg
    for key in field.split("."):
        value = None if value is None else vars(value).get(key)
    return value


def is_default(cfg: ExperimentConfig, field: str) -> bool:
    """Whether a field has its default; also where nothing has such a field."""
    holder, _, key = field.rpartition(".")
    settings = value_of(cfg, holder)
    if settings is None or key not in type(settings).model_fields:
        return True
    default = type(settings).model_fields[key].get_default(call_default_factory=True)
    return bool(vars(settings)[key] == default)


def shown(value: Any) -> Any:
    """A value as a file has it: a mapping of what was set."""
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
