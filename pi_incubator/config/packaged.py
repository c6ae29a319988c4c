"""The experiment files that come along: `configs/` of a checkout, which a wheel holds in the package."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = (".yaml", ".yml", ".json")
SCHEMA_NAME = "schema.json"
_PACKAGE = Path(__file__).parents[1]
_IN_WHEEL, _IN_CHECKOUT = _PACKAGE / "configs", _PACKAGE.parent / "configs"
CONFIGS = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT
"""The folder with the experiment files."""


def packaged_configs() -> list[str]:
    """The experiment files, as paths below `CONFIGS`, sorted."""
    files = (path for path in CONFIGS.rglob("*") if path.suffix in SUFFIXES and path.name != SCHEMA_NAME)
    return sorted(str(path.relative_to(CONFIGS)) for path in files)


def summary_of(name: str) -> str:
    """The comment at the top of an experiment file, up to its first sentence's end."""
    lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("# ")]
    text = " ".join(line for line in comments if not line.startswith("yaml-language-server"))
    return text.partition(". ")[0].rstrip(".")


def find_config(path: Path) -> Path:
    """`path`, or where there is no such file the packaged one: `sac/x.yaml` or `configs/sac/x.yaml`.

    PPO's need no folder: `x.yaml`.
    """
    if path.is_absolute() or os.pardir in path.parts or os.path.lexists(path):
        return path
    below = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    found = (CONFIGS / name for name in (below, "ppo" / below) if str(name) in packaged_configs())
    return next(found, path)
