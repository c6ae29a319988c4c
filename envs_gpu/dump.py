"""The last moments of a broken world as one file: arrays in a npz, never a pickle.

    header            JSON: format, task, backend, substeps, world, control step, causes, versions, options
    mjcf, asset.*     the scene as text, and the files that it reads
    exact.*           numbers of the model that the text rounds
    before.*          [k, ...] the states that the last k control steps started from, and their controls
    after.*           [...] the state that the last one led to
    model.*           [...] what was randomized in this world's model
    limit.*           [nq], [nv] the states that count as possible (`envs_gpu.limits`)

Meshes that nothing collides with are left out of the text: a small sphere stands for each.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import mujoco
import numpy as np
import torch

from envs_gpu.errors import DumpError
from envs_gpu.limits import Limits

FORMAT = 1
_STAND_IN_M, _STAND_IN_KG = 0.01, 1.0
_NOT_DYNAMICS = ("mesh_", "bvh_", "skin_", "tex_", "oct_")
"""Beginnings of names of arrays that belong to what stand-ins replace."""
_OPTIONS = (
    "timestep",
    "integrator",
    "cone",
    "solver",
    "iterations",
    "ls_iterations",
    "tolerance",
    "impratio",
)

Arrays = dict[str, np.ndarray]
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Scene:
    """Where states come from."""

    task: str
    backend: str
    substeps: int
    spec: mujoco.MjSpec
    model: mujoco.MjModel
    """Compiled from `spec`; what the worlds run."""
    limits: Limits
    """The states that count as possible."""

    @cached_property
    def files(self) -> Arrays:
        """`mjcf`, `asset.*` and `exact.*` of a dump."""
        text, assets = _portable(self.spec)
        files: Arrays = {"mjcf": np.array(text)}
        files |= {f"asset.{name}": np.frombuffer(data, np.uint8) for name, data in assets.items()}
        rebuilt = mujoco.MjModel.from_xml_string(text, assets)
        return files | {f"exact.{name}": value for name, value in _differences(self.model, rebuilt).items()}


@dataclass(frozen=True)
class Dump:
    """The last control steps of one world, the oldest first."""

    step: int
    """Control steps of the env until the break."""
    world: int
    causes: int
    """Bits of `envs_gpu.guards.Cause`."""
    before: Arrays
    """`qpos qvel act time ctrl`, each `[k, ...]`; without those that have no numbers."""
    after: Arrays
    fields: Arrays
    """Randomized fields of this world's model."""
    header: dict[str, Any] = field(default_factory=dict)
    """What the file says beside; empty until it was read from one."""
    limits: Limits | None = None
    """The states that counted as possible; None until it was read from a file that has them."""


def write_dump(folder: Path, scene: Scene, dump: Dump) -> Path:
    """Write `broken_<step>_<world>.npz`.

    Raises:
        OSError: it cannot be written.
        ValueError: the scene has no form that stands alone.
    """
    options = {name: getattr(scene.model.opt, name) for name in _OPTIONS}
    header = {
        "format": FORMAT,
        "task": scene.task,
        "backend": scene.backend,
        "substeps": scene.substeps,
        "step": dump.step,
        "world": dump.world,
        "causes": dump.causes,
        "mujoco": version("mujoco"),
        "options": options,
    }
    arrays: Arrays = {"header": np.array(json.dumps(header)), **scene.files}
    for prefix, group in (("before", dump.before), ("after", dump.after), ("model", dump.fields)):
        arrays |= {f"{prefix}.{name}": value for name, value in group.items()}
    arrays |= {f"limit.{name}": limit.numpy() for name, limit in scene.limits._asdict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"broken_{dump.step:09d}_{dump.world}.npz"
    if path.exists():  # of the run that this one continues, whose steps were counted from zero too
        path = path.with_stem(f"{path.stem}_{len(list(folder.iterdir()))}")
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return partial.replace(path)


def read_dump(path: str | Path) -> tuple[Dump, mujoco.MjModel]:
    """A dump, and the model of its world.

    Raises:
        DumpError: it is no dump, is damaged, or comes from a newer version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if header["format"] > FORMAT:
                problem = f"has format {header['format']}, this version reads {FORMAT}"
                raise DumpError(f"{path}: {problem}; upgrade pi_incubator")
            arrays = {name: file[name] for name in file.files}
        return _parse(header, arrays), _rebuild(arrays)
    except FileNotFoundError:
        raise DumpError(f"{path}: file not found; dumps are in the folder broken/ of a run") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DumpError(f"{path}: is no dump of a broken world, or is damaged ({reason})") from error


def _parse(header: dict[str, Any], arrays: Arrays) -> Dump:
    before, after, fields = (below(arrays, prefix) for prefix in ("before.", "after.", "model."))
    lengths = {name: len(before[name]) for name in ("qpos", "qvel", "time")}
    if len(set(lengths.values())) != 1 or not lengths["qpos"] or not {"qpos", "qvel"} <= after.keys():
        raise ValueError("its states are incomplete")
    step, world, causes = (int(header[name]) for name in ("step", "world", "causes"))
    int(header["substeps"]), str(header["task"]), str(header["backend"])
    limits = {name: torch.from_numpy(value) for name, value in below(arrays, "limit.").items()}
    return Dump(step, world, causes, before, after, fields, header, Limits(**limits) if limits else None)


def _rebuild(arrays: Arrays) -> mujoco.MjModel:
    assets = {name: value.tobytes() for name, value in below(arrays, "asset.").items()}
    model = mujoco.MjModel.from_xml_string(str(arrays["mjcf"]), assets)
    # What was randomized comes last: it is this world's own.
    for name, value in (below(arrays, "exact.") | below(arrays, "model.")).items():
        owner, _, last = name.rpartition(".")
        target = getattr(getattr(model, owner) if owner else model, last, None)
        if isinstance(target, np.ndarray):
            target[...] = value.reshape(target.shape)
        elif owner == "opt":
            setattr(model.opt, last, float(value))
        else:
            raise ValueError(f"its model has no field {name!r}")
    return model


def _portable(spec: mujoco.MjSpec) -> tuple[str, dict[str, bytes]]:
    """The scene as text that names no file but those that come with it."""
    spec = spec.copy()
    for geom in spec.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH and not geom.contype | geom.conaffinity:
            geom.type, geom.meshname = mujoco.mjtGeom.mjGEOM_SPHERE, ""
            geom.size, geom.mass = (_STAND_IN_M, 0, 0), _STAND_IN_KG
    needed = {geom.meshname for geom in spec.geoms if geom.meshname}
    for mesh in spec.meshes:
        if mesh.name not in needed:
            spec.delete(mesh)
    for material in spec.materials:
        material.textures = [""] * len(material.textures)
    for texture in spec.textures:
        spec.delete(texture)
    assets = dict(spec.assets or {})
    # Names of their own, because a file's name may be an absolute path.
    for number, asset in enumerate(one for one in (*spec.meshes, *spec.hfields) if one.file):
        folder, name = Path(spec.modelfiledir) / spec.meshdir, f"{number}{Path(asset.file).suffix}"
        assets[name] = assets.pop(asset.file, None) or (folder / asset.file).read_bytes()
        asset.file = name
    spec.meshdir, spec.assets = "", assets
    spec.compile()
    return spec.to_xml(), assets


def _differences(model: mujoco.MjModel, rebuilt: mujoco.MjModel) -> Arrays:
    """Numbers of `model` that `rebuilt` has otherwise."""
    if any(getattr(model, size) != getattr(rebuilt, size) for size in ("nq", "nv", "na", "nu", "nbody")):
        raise ValueError("the scene as text is another model")
    pairs = {name: (getattr(model, name), getattr(rebuilt, name)) for name in dir(model) if name[0] != "_"}
    options = [name for name in dir(model.opt) if name[0] != "_"]
    pairs |= {f"opt.{name}": (getattr(model.opt, name), getattr(rebuilt.opt, name)) for name in options}
    return {
        name: np.array(ours)
        for name, (ours, theirs) in pairs.items()
        if isinstance(ours, float | np.ndarray)
        and np.asarray(ours).dtype.kind == "f"
        and not name.startswith(_NOT_DYNAMICS)
        and np.shape(ours) == np.shape(theirs)
        and not np.array_equal(ours, theirs)
    }


def below(named: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    """What is filed under `prefix`, by the rest of its name."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
