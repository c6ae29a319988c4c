"""Experiment configuration: typed models, a loader that says where a value came from, and checks."""

from pi_incubator.config.check import check_names, load_checked, validate_run
from pi_incubator.config.errors import ConfigError, RunSettingError, explain_settings
from pi_incubator.config.loader import load_config, load_saved, load_with_sources, save_config
from pi_incubator.config.models import ExperimentConfig

__all__ = [
    "ConfigError",
    "ExperimentConfig",
    "RunSettingError",
    "check_names",
    "explain_settings",
    "load_checked",
    "load_config",
    "load_saved",
    "load_with_sources",
    "save_config",
    "validate_run",
]
