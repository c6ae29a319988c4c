"""Env families written elsewhere, one file each: `env.name=brax/ant` is the env `ant` of the family `brax`.

Every family's worlds keep the contract of `envs_gpu.vec_env`. A family's file imports its package only when
an env is made or its names are listed.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, cast

from envs_gpu.errors import EnvError
from envs_gpu.registry import Registry, UnknownNameError

if TYPE_CHECKING:
    from envs_gpu.zoo._family import Family

FAMILIES = Registry("env family", "envs_gpu.zoo")
family = FAMILIES.register


class ZooError(EnvError, ValueError):
    """An env of a family that cannot be used here; `problem` says why, and `fix` what to do."""

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(f"{problem}; {fix}")


def is_zoo_name(name: str) -> bool:
    """Whether `name` is `family/env` and not one of our own tasks."""
    return "/" in name


def find(name: str) -> tuple[Family, str]:
    """The family of `name`, `family/env`, and the env's name in it.

    Raises:
        UnknownNameError: no such family, or none of its envs has this name; the message suggests the nearest.
        ZooError: the family's package is not installed, or the env's module cannot be imported.
    """
    family_name, _, env_name = name.partition("/")
    found = cast("Family", FAMILIES.get(family_name)())
    if missing := [module for module in found.modules if importlib.util.find_spec(module) is None]:
        raise ZooError(f"needs {' and '.join(missing)}, not installed here", found.install)
    try:
        found.check_name(env_name)
    except UnknownNameError as error:
        known = [f"{family_name}/{one}" for one in error.known]
        raise UnknownNameError("env", name, known) from None
    return found, env_name
