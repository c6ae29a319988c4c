"""Which file an experiment inherits from, which may depend on the device: `base: {cpu: FILE, cuda: FILE}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pi_incubator.config.errors import ConfigError

DEVICES = ("cpu", "cuda")


def base_file(value: object, source: str, get: Callable[[str], Any]) -> str:
    """The file that `base` names, for the device that the run will use.

    Args:
        value: of the key `base`.
        source: where it stands.
        get: `section.key` -> what the file and whatever inherits from it say; None where they say nothing.

    Raises:
        ConfigError: it names no file.
    """
    files = value.values() if isinstance(value, Mapping) else [value]
    has_devices = not isinstance(value, Mapping) or set(value) == set(DEVICES)
    if not has_devices or not all(isinstance(file, str) and file for file in files):
        fix = "name one file, relative to this one, or two as {cpu: FILE, cuda: FILE}"
        raise ConfigError(source, "base", value, problem="must be a file name", fix=fix)
    return str(value[_device_of(get)] if isinstance(value, Mapping) else value)


def _device_of(get: Callable[[str], Any]) -> str:
    """As `pi_incubator.compute` will choose for an env of ours."""
    asked = get("compute.device")
    if asked in DEVICES:
        return str(asked)
    if get("env.backend") == "mujoco":
        return "cpu"
    import torch  # takes seconds, and most files do not ask

    return "cuda" if torch.cuda.is_available() else "cpu"
