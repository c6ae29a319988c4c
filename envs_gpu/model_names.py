"""Where a robot's file is: a path, or a name in a collection of robots.

`menagerie:unitree_go1/scene.xml` is a file of MuJoCo Menagerie, `menagerie:unitree_go1` its default scene,
and `robot_descriptions:panda_mj_description` a robot of the package of that name. Both download at first use.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import NamedTuple

from envs_gpu.errors import SettingError
from envs_gpu.registry import nearest

MENAGERIE, DESCRIPTIONS = "menagerie:", "robot_descriptions:"


class ModelPlace(NamedTuple):
    """A robot's file, and the folder below which it may read."""

    path: Path
    root: Path | None
    """None is the file's own folder."""


def is_collected(name: str) -> bool:
    """Whether `name` is a robot of a collection, and not a path."""
    return name.startswith((MENAGERIE, DESCRIPTIONS))


def find_model(name: str, root: str | None = None) -> ModelPlace:
    """The file that `env.model = name` means; downloads it where it is not on this machine.

    Args:
        name: a path, `menagerie:ROBOT[/FILE]` or `robot_descriptions:NAME`.
        root: `env.model_root`, which is stronger than the collection's folder.

    Raises:
        SettingError: the collection has no such robot, or it cannot be had.
    """
    if name.startswith(MENAGERIE):
        place = _in_menagerie(name)
    elif name.startswith(DESCRIPTIONS):
        place = _in_descriptions(name)
    else:
        place = ModelPlace(Path(os.path.expanduser(name)), None)
    return place if root is None else ModelPlace(place.path, Path(os.path.expanduser(root)))


def _in_menagerie(name: str) -> ModelPlace:
    import mujoco_menagerie

    robot, _, file = name.removeprefix(MENAGERIE).partition("/")
    try:
        known = mujoco_menagerie.get(robot)
    except mujoco_menagerie.UnknownRobotError:
        raise _unknown(name, "robot", robot, mujoco_menagerie.names()) from None
    try:
        folder = Path(known.path())
        path = folder / file if file else Path(known.xml())
    except (mujoco_menagerie.MenagerieError, OSError) as error:
        fix = "connect to the internet, or set MENAGERIE_ROOT to a folder laid out like MuJoCo Menagerie"
        raise SettingError("env.model", name, f"cannot be had ({_in_one_line(error)})", fix) from None
    if not folder.is_dir():
        fix = "set MENAGERIE_ROOT to a folder that has it, or unset it to download"
        raise SettingError("env.model", name, f"{folder} does not exist", fix)
    if not os.path.isfile(path):
        files = sorted(found.name for found in folder.glob("*.xml"))
        raise _unknown(name, "file", file or path.name, files)
    return ModelPlace(path, folder)


def _in_descriptions(name: str) -> ModelPlace:
    wanted = name.removeprefix(DESCRIPTIONS)
    try:
        package = importlib.import_module("robot_descriptions")
    except ImportError:
        problem, fix = (
            "needs the package robot_descriptions, not installed here",
            "pip install robot_descriptions",
        )
        raise SettingError("env.model", name, problem, fix) from None
    known = sorted(path.stem for path in Path(package.__path__[0]).glob("*_description.py"))
    if wanted not in known:
        raise _unknown(name, "description", wanted, [one for one in known if not one.startswith("_")])
    try:
        module = importlib.import_module(f"robot_descriptions.{wanted}")
    except Exception as error:  # git's, the network's, or another package's
        problem, fix = f"cannot be had ({_in_one_line(error)})", "connect to the internet, or name a file"
        raise SettingError("env.model", name, problem, fix) from None
    path = getattr(module, "MJCF_PATH", None) or getattr(module, "URDF_PATH", None)
    if path is None:
        raise SettingError("env.model", name, "has neither MJCF nor URDF", "name another description")
    root = getattr(module, "REPOSITORY_PATH", None) or getattr(module, "PACKAGE_PATH", None)
    return ModelPlace(Path(path), Path(root) if root else None)


def _unknown(name: str, kind: str, wanted: str, known: list[str] | tuple[str, ...]) -> SettingError:
    guess = nearest(wanted, known)
    hint = f"did you mean {guess!r}? " if guess else ""
    shown = ", ".join(known) if len(known) <= 20 else f"{len(known)} others"
    return SettingError("env.model", name, f"no {kind} {wanted!r} there", f"{hint}known: {shown}")


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
