"""The one place where MJCF files are read and compiled, and what MuJoCo would take in silence is refused.

A user's model may read files from its own folder and the folders below it, and from nowhere else: includes,
meshes, textures and height fields that lead out of it (`../`, an absolute path, a link) are errors, so that a
model from elsewhere can be run without reading it first. Models that come with installed packages may read
what they like.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from xml.parsers import expat

import mujoco
import numpy as np

from envs_gpu.errors import ModelError
from envs_gpu.registry import nearest

_FOLDERS = {"texture": ("texturedir", "assetdir")}
"""Compiler attributes that say where an element's files are; `_MESH_FOLDERS` for all others."""
_MESH_FOLDERS = ("meshdir", "assetdir")
_BESIDE_THE_MODEL = ("include", "model")
"""Elements whose file is MJCF itself and is looked for beside the model."""
_FREE_TEXT = ("name", "class", "childclass", "data")
_FINITE = (
    *("body_pos", "body_quat", "body_mass", "body_inertia", "geom_pos", "geom_quat", "geom_size"),
    *("jnt_pos", "jnt_axis", "site_pos", "actuator_gear", "actuator_gainprm", "actuator_biasprm"),
    *("dof_damping", "dof_armature", "qpos0", "key_qpos", "key_ctrl"),
)
"""Fields of a compiled model in which a number that is not finite can never be meant."""
_NAMED = {"body": "body", "geom": "geom", "jnt": "joint", "site": "site", "actuator": "actuator"}
_REFERENCE = "see https://mujoco.readthedocs.io/en/stable/XMLreference.html"


class Element(NamedTuple):
    """One start tag of a file."""

    file: Path
    line: int
    tag: str
    attributes: dict[str, str]

    def __str__(self) -> str:
        name = self.attributes.get("name")
        return f"{self.file}, line {self.line}, <{self.tag}" + (f' name="{name}">' if name else ">")


class Sensors(dict[str, slice]):
    """Where each sensor's values are in `sensordata`; an unknown name is a `ModelError`."""

    def __missing__(self, name: str) -> slice:
        guess = nearest(name, self)
        hint = f"did you mean {guess!r}? " if guess else ""
        problem = f"the task reads a sensor {name!r}, which its scene does not have"
        raise ModelError(f"{problem}; {hint}add it in scene()")


def load_model(path: str | Path, *, trusted: bool = False) -> mujoco.MjSpec:
    """Read an MJCF file and everything that it includes.

    Args:
        path: relative to the working directory.
        trusted: the file comes with an installed package, and may read from anywhere.

    Raises:
        ModelError: it is missing, not MJCF, or says what no model can mean.
    """
    path = Path(os.path.expanduser(path))  # which leaves the name of an unknown user as it is
    _check_is_file(path)
    if "\\" in str(path):
        raise ModelError(f"{path}: MuJoCo takes its backslash for '/'; rename the file or folder")
    elements = _read_elements(path, path.parent if not trusted else None)
    _check_numbers(elements)
    if not trusted:
        _check_files(path.parent, elements)
    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except (ValueError, mujoco.FatalError) as error:
        raise _from_mujoco(error, str(path), elements) from None
    options = [str(e) for e in elements if e.tag == "option" and "timestep" in e.attributes]
    _check_timestep(spec.option.timestep, (options or [str(path)])[-1])
    return spec


def model_files(path: str | Path) -> dict[str, Path]:
    """The files that a user's MJCF file reads: itself under the name `.`, then the others by their place
    relative to its folder.

    Raises:
        ModelError: it is missing, not MJCF, or reads outside of its folder.
    """
    path = Path(path).expanduser()
    _check_is_file(path)
    root = path.parent
    elements = _read_elements(path, root)
    _check_files(root, elements)
    strips_folders = any(element.attributes.get("strippath") == "true" for element in elements)
    files = {".": path}
    for element in elements:
        folders = _folders(element.tag, elements)
        for attribute, value in element.attributes.items():
            if not attribute.startswith("file"):
                continue
            names = [value, PureWindowsPath(value).name] if strips_folders else [value]
            for target in (t for name in names for t in _candidates(root, element, name, folders)):
                if os.path.isfile(target) and _real(target) != _real(path):
                    files[os.path.relpath(os.path.normpath(target), root)] = target
    return dict(sorted(files.items()))


def compile_model(spec: mujoco.MjSpec, source: str) -> mujoco.MjModel:
    """Compile a scene, and check that an agent can act in it.

    Args:
        spec: the scene.
        source: what to call it in an error: the MJCF file that it was read from, or the task that built it.

    Raises:
        ModelError: MuJoCo cannot compile it, its timestep is not above zero, a number in it is not finite, or
            it has no actuators, or actuators without limits.
    """
    try:
        model = spec.compile()
    except (ValueError, mujoco.FatalError) as error:
        path = Path(source)
        raise _from_mujoco(error, source, _read_elements(path, None) if path.is_file() else []) from None
    _check_timestep(model.opt.timestep, f"{source}, <option>")
    for field in _FINITE:
        _check_finite(model, field, source)
    _check_actuators(model, source)
    return model


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


def drives_joint(model: mujoco.MjModel) -> np.ndarray:
    """`[nu]` bool: the actuator moves a joint, and not a tendon or a site."""
    kinds = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    return np.isin(model.actuator_trntype, [int(kind) for kind in kinds])


def driven_joints(model: mujoco.MjModel) -> tuple[str, ...]:
    """The joint that each actuator drives; the actuator's own name where it drives something else."""
    names = []
    for index, on_joint in enumerate(drives_joint(model)):
        joint = model.joint(model.actuator_trnid[index, 0]).name if on_joint else ""
        names.append(joint or model.actuator(index).name or f"actuator_{index}")
    return tuple(names)


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


def _read_elements(path: Path, root: Path | None) -> list[Element]:
    """Every start tag of a model and of what it includes, in order; files outside `root` are not opened."""
    elements: list[Element] = []
    queue, seen = [path], {_real(path)}
    while queue:
        file = queue.pop(0)
        found = _parse(file)
        if file == path and found[0].tag != "mujoco":
            raise ModelError(f"{found[0]} is not MJCF, whose first element is <mujoco>; convert it to MJCF")
        elements += found
        for element in found:
            if element.tag not in _BESIDE_THE_MODEL or "file" not in element.attributes:
                continue
            for target in _candidates(path.parent, element, element.attributes["file"], [""]):
                if os.path.isfile(target) and _real(target) not in seen and _is_inside(target, root):
                    seen.add(_real(target))
                    queue.append(target)
    return elements


def _parse(file: Path) -> list[Element]:
    """The start tags of one file.

    Raises:
        ModelError: it is not well-formed XML.
    """
    elements: list[Element] = []
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        elements.append(Element(file, parser.CurrentLineNumber, tag, attributes))

    def entity(*_: object) -> None:
        raise ModelError(f"{file}, line {parser.CurrentLineNumber}: declares an XML entity; write it out")

    parser.StartElementHandler, parser.EntityDeclHandler = start, entity
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise ModelError(f"{file}, line {error.lineno}: not well-formed XML ({reason}); correct it") from None
    except (LookupError, ValueError) as error:
        raise ModelError(f"{file}, line 1: cannot be decoded ({error}); save it as UTF-8") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); make it readable") from None
    return elements


def _check_numbers(elements: list[Element]) -> None:
    """MuJoCo takes nan for a number, or for one that was not given."""
    for element in elements:
        for attribute, value in element.attributes.items():
            numbers = [token.lstrip("+-").lower() for token in value.split()]
            if attribute not in _FREE_TEXT and "nan" in numbers:
                raise ModelError(f'{element} {attribute}="{value}": not a number; write one')


def _check_files(root: Path, elements: list[Element]) -> None:
    """Refuse every path by which a model could read outside of `root`."""
    for element in elements:
        if element.tag == "compiler":
            for attribute in ("meshdir", "texturedir", "assetdir"):
                if attribute in element.attributes:
                    _check_inside(root, element, attribute, [""])
        folders = _folders(element.tag, elements)
        for attribute in element.attributes:
            if attribute.startswith("file"):
                _check_inside(root, element, attribute, folders)


def _check_inside(root: Path, element: Element, attribute: str, folders: list[str]) -> None:
    value = element.attributes[attribute]
    for target in _candidates(root, element, value, folders):
        if not _is_inside(target, root):
            raise ModelError(
                f'{element} {attribute}="{value}": leads out of the model\'s folder {_real(root)}; '
                "copy what it names into that folder"
            )


def _folders(tag: str, elements: list[Element]) -> list[str]:
    """Every folder that a compiler element declares for the files of `tag`; all of them, whichever holds."""
    if tag in _BESIDE_THE_MODEL:
        return [""]
    keys = _FOLDERS.get(tag, _MESH_FOLDERS)
    compilers = [element.attributes for element in elements if element.tag == "compiler"]
    return [attributes[key] for attributes in compilers for key in keys if key in attributes] or [""]


def _candidates(root: Path, element: Element, value: str, folders: list[str]) -> list[Path]:
    """Where MuJoCo may look for a file: below the model's folder, or beside the file that names it."""
    below = [Path(folder.replace("\\", "/")) / value.replace("\\", "/") for folder in folders]
    return [base / path for base in dict.fromkeys((root, element.file.parent)) for path in below]


def _is_inside(path: Path, root: Path | None) -> bool:
    return root is None or _real(path).is_relative_to(_real(root))


def _real(path: Path) -> Path:
    """`path` without links, also where those lead in a circle, at which `Path.resolve` raises."""
    return Path(os.path.realpath(path))


def _check_timestep(timestep_s: float, where: str) -> None:
    if not (math.isfinite(timestep_s) and timestep_s > 0):
        raise ModelError(f'{where} timestep="{timestep_s:g}": not above zero; write seconds, such as 0.002')


def _check_finite(model: mujoco.MjModel, field: str, source: str) -> None:
    values = np.asarray(getattr(model, field))
    bad = np.argwhere(~np.isfinite(values))
    if not len(bad):
        return
    kind, _, attribute = field.partition("_")
    where = _name(model, _NAMED[kind], int(bad[0][0])) if kind in _NAMED else field
    number = values[tuple(bad[0])]
    raise ModelError(f"{source}: {attribute or field} of {where} is {number}; write a finite number")


def _check_actuators(model: mujoco.MjModel, source: str) -> None:
    if model.nu == 0:
        raise ModelError(f"{source}: no actuators, so nothing to control; add an <actuator> section")
    for i in range(model.nu):
        who, (low, high) = _name(model, "actuator", i), model.actuator_ctrlrange[i]
        if not model.actuator_ctrllimited[i]:
            problem = "has no limits, so an action has no scale"
            raise ModelError(f'{source}: {who} {problem}; give it ctrlrange="low high"')
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(f'{source}: {who} has ctrlrange="{low:g} {high:g}"; write finite numbers')


def _name(model: mujoco.MjModel, kind: str, index: int) -> str:
    """What to call an element in an error."""
    name = getattr(model, kind)(index).name
    return f"{kind} {name!r}" if name else f"{kind} number {index}"


def _from_mujoco(error: Exception, source: str, elements: list[Element]) -> ModelError:
    """MuJoCo's message in one line, with the file that its element and line belong to."""
    text = " ".join(str(error).split())
    text = re.sub(r"^(XML Error: |Error: )+", "", text)
    fix = "correct it; " + _REFERENCE
    if file := re.search(r"Error opening file '(.*?)'", text):
        fitting = [str(e) for e in elements if _names_file(e, file[1])]
        where = (fitting or [source])[0]
        return ModelError(f"{where}: no file {file[1]!r}; put it there, or correct the path")
    if at := re.search(r" ?Element (?:name )?'(.*?)'.*?line (\d+)", text):
        name, line, problem = at[1], int(at[2]), text[: at.start()]
        called = [e for e in elements if name in (e.tag, e.attributes.get("name", ""))]
        # MuJoCo forgets the lines of included files: there the word that it quotes has to do.
        quoted = set(re.findall("'(.*?)'", problem))
        fitting = [str(e) for e in called if (e.line == line if line else quoted & _words(e))]
        where = fitting[-1] if fitting else f"{source}, line {line}, element {name!r}"
        return ModelError(f"{where}: {problem}; {fix}")
    return ModelError(f"{source}: {text}; {fix}")


def _words(element: Element) -> set[str]:
    return {*element.attributes, *element.attributes.values()}


def _names_file(element: Element, file: str) -> bool:
    named = (value for key, value in element.attributes.items() if key.startswith("file"))
    return any(Path(file).name == Path(value.replace("\\", "/")).name for value in named)
