"""The one place where robots' files are read and compiled, and what MuJoCo would take in silence is refused.

A user's model may read files from its own folder and the folders below it, or from a wider folder that the
user trusts, and from nowhere else (`model_files`). Models of installed packages may read what they like.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from envs_gpu.actuators import actuator_name, actuator_of_output, controls
from envs_gpu.errors import ModelError
from envs_gpu.model_files import ModelText, is_inside, read_model, real
from envs_gpu.model_sizes import check_sizes
from envs_gpu.model_text import Element
from envs_gpu.registry import nearest

_FREE_TEXT = ("name", "class", "childclass", "data")
_FINITE = (
    *("body_pos", "body_quat", "body_mass", "body_inertia", "geom_pos", "geom_quat", "geom_size"),
    *("jnt_pos", "jnt_axis", "site_pos", "actuator_gear", "actuator_gainprm", "actuator_biasprm"),
    *("dof_damping", "dof_armature", "qpos0", "key_qpos", "key_ctrl"),
)
"""Fields of a compiled model in which a number that is not finite can never be meant."""
_ZERO = 1e-12
_REFUSALS = (ValueError, mujoco.FatalError, RuntimeError, MemoryError)
"""What MuJoCo raises; a RuntimeError where it runs out of memory."""
_PATHS = ("paths", "npaths", "nbuffer", "narena", "signature", "text_data")
_NAMED = {"body": "body", "geom": "geom", "jnt": "joint", "site": "site"}
_REFERENCE = "see https://mujoco.readthedocs.io/en/stable/XMLreference.html"


class Sensors(dict[str, slice]):
    """Where each sensor's values are in `sensordata`; an unknown name is a `ModelError`."""

    def __missing__(self, name: str) -> slice:
        guess = nearest(name, self)
        hint = f"did you mean {guess!r}? " if guess else ""
        problem = f"the task reads a sensor {name!r}, which its scene does not have"
        raise ModelError(f"{problem}; {hint}add it in scene()")


def load_model(path: str | Path, *, trusted: bool = False, root: str | Path | None = None) -> mujoco.MjSpec:
    """Read an MJCF or URDF file and everything that it names.

    Args:
        path: relative to the working directory.
        trusted: the file comes with an installed package, and may read from anywhere.
        root: the folder below which the file may read; None is its own folder.

    Raises:
        ModelError: it is missing, neither MJCF nor URDF, or says what no model can mean.
    """
    return load_with_text(path, trusted=trusted, root=root)[0]


def load_with_text(
    path: str | Path, *, trusted: bool = False, root: str | Path | None = None
) -> tuple[mujoco.MjSpec, ModelText]:
    """`load_model`, and the text that MuJoCo was given."""
    text = _read(path, trusted, root)
    _check_values(text.every_element())
    check_sizes(text)
    try:
        spec = mujoco.MjSpec.from_string(text.text, include=text.children or None)
    except _REFUSALS as error:
        raise _from_mujoco(error, str(path), text) from None
    _check_assets(spec, text, str(path))
    options = [str(e) for e in text.elements if e.tag == "option" and "timestep" in e.attributes]
    _check_timestep(spec.option.timestep, (options or [str(path)])[-1])
    return spec, text


def model_files(path: str | Path, root: str | Path | None = None) -> dict[str, Path]:
    """The files that a user's MJCF or URDF file reads: itself under the name `.`, then the others by their
    place relative to its folder.

    Args:
        path: the file.
        root: the folder below which it may read; None is its own folder.

    Raises:
        ModelError: it is missing, or reads outside of that folder, or names a file by an absolute path, which
            a copy of the model would not find, or two files by paths that are one path in a copy.
    """
    text = _read(path, False, root)
    for where in text.absolute:
        raise ModelError(f"{where}: is an absolute path, which a copy of the model lacks; write it relative")
    for where in text.clashes:
        raise ModelError(f"{where}; write both without '..' after a link")
    return dict(sorted(text.files.items()))


def _read(path: str | Path, trusted: bool, root: str | Path | None) -> ModelText:
    """The text of a model; errors as of `load_model`."""
    path = Path(os.path.expanduser(path))  # which leaves the name of an unknown user as it is
    _check_is_file(path)
    folder = path.parent if root is None else Path(os.path.expanduser(root))
    if not trusted and not is_inside(path.parent, folder):
        fix = f"name a folder that the model is in, such as {real(path.parent)}"
        raise ModelError(f"{path}: is not in env.model_root={folder}; {fix}")
    return read_model(path, None if trusted else folder)


def compile_model(spec: mujoco.MjSpec, source: str) -> mujoco.MjModel:
    """Compile a scene, and check that an agent can act in it.

    Args:
        spec: the scene.
        source: what to call it in an error: the MJCF file that it was read from, or the task that built it.

    Raises:
        ModelError: MuJoCo cannot compile it, its timestep is not above zero, a number in it is not finite, or
            nothing in it can move, or it has no actuators, or actuators without limits.
    """
    model = compiled(spec, source)
    _check_timestep(model.opt.timestep, f"{source}, <option>")
    for field in _FINITE:
        _check_finite(model, field, source)
    _check_actuators(model, source)
    return model


def compiled(spec: mujoco.MjSpec, source: str) -> mujoco.MjModel:
    """`spec`, compiled by MuJoCo and not checked; arguments and errors as of `compile_model`."""
    try:
        return spec.compile()
    except _REFUSALS as error:
        path = Path(os.path.expanduser(source))
        text = read_model(path, None) if os.path.isfile(path) else ModelText()
        raise _from_mujoco(error, source, text) from None


def model_hashes(model: mujoco.MjModel) -> dict[str, str]:
    """Every field that a compiled model is made of -> SHA-256 of its values, in hexadecimal.

    Texts are left out, as they hold the paths of files.
    """
    fields: dict[str, Any] = {}
    for owner, prefix in ((model, ""), (model.opt, "opt."), (model.stat, "stat.")):
        for name in dir(owner):
            if not (name.startswith("_") or name in _PATHS or name.endswith(("_pathadr", "_nameadr"))):
                fields[prefix + name] = getattr(owner, name)
    kept = {k: v for k, v in fields.items() if isinstance(v, (int, float, np.ndarray, np.generic))}
    return {name: _hash(np.asarray(value)) for name, value in kept.items()}


def _hash(values: np.ndarray) -> str:
    """SHA-256 of an array; of numbers to six digits, as machines differ in the last ones of an inertia."""
    if values.dtype.kind == "f":
        mantissa, exponent = np.frexp(np.where(np.abs(values) < _ZERO, 0.0, values))
        values = np.ldexp(np.round(mantissa * 2.0**20), exponent)
    return hashlib.sha256(str(values.shape).encode() + np.ascontiguousarray(values).tobytes()).hexdigest()


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Turn MuJoCo's KeyError for a name that a model lacks into a ModelError.

    Raises:
        ModelError: `source` asks a model for an element by a name that is not in it.
    """
    try:
        yield
    except KeyError as error:
        text = str(error.args[0]) if error.args else ""
        if not (unknown := re.match(r"Invalid name '(.*?)'\. Valid names: (\[.*\])", text, re.DOTALL)):
            raise
        name, names = unknown[1], re.findall(r"'(.*?)'", unknown[2])
        guess = nearest(name, names)
        hint = f"did you mean {guess!r}? " if guess else ""
        problem = f"{source} names {name!r}, which its scene does not have"
        raise ModelError(f"{problem}; {hint}known: {', '.join(names)}") from None


def _check_is_file(path: Path) -> None:
    if os.path.isdir(path):
        raise ModelError(f"{path}: is a folder; name the MJCF file in it")
    if not os.path.isfile(path):  # false where pathlib would raise, at a name too long for a file
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ModelError(f"{path}: no such file{where}; name an MJCF file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    if empty:
        raise ModelError(f"{path}: is empty; name an MJCF file")


def _check_values(elements: list[Element]) -> None:
    """MuJoCo takes nan for a number, and `%` in a class name for a format of C, which crashes."""
    for element in elements:
        for attribute, value in element.attributes.items():
            if attribute == "class" and "%" in value:
                raise ModelError(f'{element} {attribute}="{value}": MuJoCo reads "%" as a format; rename it')
            numbers = [token.lstrip("+-").lower() for token in value.split()]
            if attribute not in _FREE_TEXT and "nan" in numbers:
                raise ModelError(f'{element} {attribute}="{value}": not a number; write one')


def _check_assets(spec: mujoco.MjSpec, text: ModelText, source: str) -> None:
    """Check, before anything is opened, that MuJoCo will open what was looked up, and nothing else."""
    named = [asset.file for asset in (*spec.meshes, *spec.hfields, *spec.skins)]
    named += [file for texture in spec.textures for file in (texture.file, *texture.cubefiles)]
    for file in named:
        if file and file not in text.assets:
            raise ModelError(f"{source}: MuJoCo would open {file!r}, which was not checked; rename that file")


def _check_timestep(timestep_s: float, where: str) -> None:
    if not (math.isfinite(timestep_s) and timestep_s > 0):
        raise ModelError(f'{where} timestep="{timestep_s:g}": not above zero; write seconds, such as 0.002')


def _check_finite(model: mujoco.MjModel, field: str, source: str) -> None:
    values = np.asarray(getattr(model, field))
    bad = np.argwhere(~np.isfinite(values))
    if not len(bad):
        return
    kind, _, attribute = field.partition("_")
    row = int(bad[0][0])
    where = _name(model, _NAMED[kind], row) if kind in _NAMED else field
    if kind == "actuator":
        owner = actuator_of_output(model)[row] if len(values) > model.nactuator else row
        where = f"actuator {actuator_name(model, int(owner))!r}"
    number = values[tuple(bad[0])]
    raise ModelError(f"{source}: {attribute or field} of {where} is {number}; write a finite number")


def _check_actuators(model: mujoco.MjModel, source: str) -> None:
    if model.nu == 0:
        raise ModelError(f"{source}: no actuators, so nothing to control; add an <actuator> section")
    if model.nv == 0:
        raise ModelError(f"{source}: no joints, so nothing can move; add a <joint> to a <body>")
    for control in controls(model):
        (low, high), who = model.actuator_ctrlrange[control.index], f"actuator {control.name!r}"
        if not model.actuator_ctrllimited[control.index]:
            problem = "has no limits, so an action has no scale, and nothing else bounds it"
            fix = f'set {_setting(control.name)} with its own numbers, or give it ctrlrange="low high"'
            raise ModelError(f"{source}: {who} {problem}; {fix}")
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(f'{source}: {who} has ctrlrange="{low:g} {high:g}"; write finite numbers')


def _setting(control: str) -> str:
    """A setting of a control's limits that can be pasted into a shell."""
    is_plain = re.fullmatch(r"[\w./-]+", control)
    name = f".{control}=[-1, 1]" if is_plain else f"={{{json.dumps(control, ensure_ascii=False)}: [-1, 1]}}"
    return shlex.quote(f"env.limits{name}")


def _name(model: mujoco.MjModel, kind: str, index: int) -> str:
    """What to call an element in an error."""
    name = getattr(model, kind)(index).name
    return f"{kind} {name!r}" if name else f"{kind} number {index}"


def _from_mujoco(error: Exception, source: str, text: ModelText) -> ModelError:
    """MuJoCo's message in one line, with the file and the line of the element that it is about."""
    message = " ".join(str(error).split())
    message = re.sub(r"^(XML Error: |Error: )+", "", message)
    if isinstance(error, MemoryError) or "unknown exception" in message:
        message = "MuJoCo cannot compile it and does not say why, which is mostly a lack of memory"
    fix = "correct it; " + _REFERENCE
    if file := re.search(r"Error opening file '(.*?)'", message):
        naming_it = [str(element) for element in text.every_element() if _names_file(element, file[1])]
        where = (naming_it or [source])[0]
        return ModelError(f"{where}: no file {file[1]!r}; put it there, or correct the path")
    if at := re.search(r" ?Element (?:name )?'(.*?)'.*?line (\d+)", message):
        name, line, problem = at[1], int(at[2]), message[: at.start()]
        found = text.at_line(line)
        called = [e for e in found if name in (e.tag, e.attributes.get("name", ""))]
        fitting = called or found
        where = str(fitting[0]) if fitting else f"{source}, element {name!r}"
        return ModelError(f"{where}: {problem}; {fix}")
    return ModelError(f"{source}: {message}; {fix}")


def _names_file(element: Element, file: str) -> bool:
    named = (value for key, value in element.attributes.items() if key.startswith("file"))
    return any(Path(file).name == Path(value).name for value in named)
