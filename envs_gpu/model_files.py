"""What a robot's file may read, and the text that MuJoCo is given in its place.

A user's model may read files below one folder, its own or `env.model_root`, and from nowhere else, so that a
model from elsewhere can be run without reading it first. MuJoCo opens no XML here: it is given the plain form
(`model_text`) of the file with its includes, in which the place of every mesh, texture and height field has
been looked up, checked, and written as an absolute path. The files of `<model>` are given the same way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from envs_gpu.errors import ModelError
from envs_gpu.model_text import Element, parse, plain_text

ITSELF = "."
"""The name, among the files that a model reads, of the model's own."""
_FOLDERS = {"texture": "texturedir"}
"""The compiler's attribute that says where an element's files are; `meshdir` for all others."""
_NOWHERE = "/dev/null"
"""Below it there can be no file: what is named there is found in memory, or not at all."""
_PACKAGE = "package://"


@dataclass
class ModelText:
    """A robot's file as MuJoCo is given it."""

    text: str = ""
    """The plain form, with everything that is included."""
    elements: list[Element] = field(default_factory=list)
    """Of line k, counted from one, element k - 1."""
    children: dict[str, bytes] = field(default_factory=dict)
    """The plain form of the files of `<model>`, by the name that `text` calls them."""
    child_elements: list[list[Element]] = field(default_factory=list)
    """Of each child, as `elements`."""
    files: dict[str, Path] = field(default_factory=dict)
    """Every file that is read, itself first, by its place relative to the model's folder."""
    assets: set[str] = field(default_factory=set)
    """What MuJoCo may open, as `text` and `children` call it."""
    absolute: list[str] = field(default_factory=list)
    """The elements that name a file by an absolute path."""
    clashes: list[str] = field(default_factory=list)
    """The elements that name, through a link and `..`, another file than the one of that name in `files`."""
    is_urdf: bool = False

    def every_element(self) -> list[Element]:
        """The elements of the model and of its children."""
        return [element for document in (self.elements, *self.child_elements) for element in document]

    def at_line(self, line: int) -> list[Element]:
        """The elements that MuJoCo may mean by a line: of the model itself, then of its children."""
        documents = (self.elements, *self.child_elements)
        return [elements[line - 1] for elements in documents if 0 < line <= len(elements)]


def read_model(path: Path, root: Path | None) -> ModelText:
    """Read a robot's file, MJCF or URDF, and look up all that it names; opens XML only, below `root`.

    Args:
        path: the file.
        root: the folder below which it may read; None is everywhere.

    Raises:
        ModelError: it is not well-formed, a file is missing, or leads out of `root`.
    """
    out = ModelText(files={ITSELF: path})
    document = _Reader(path, path.parent, root, out, ()).document()
    out.text, out.elements = plain_text(document)
    out.is_urdf = document.tag == "robot"
    return out


class _Reader:
    """Reads one file and its includes; its children are read by readers of their own.

    Args:
        path: the file.
        top: the folder of the model that is read; another one than the file's where that is a child.
        root: as of `read_model`.
        out: gets the children and the files.
        above: the files that this one is a child of.
    """

    def __init__(
        self, path: Path, top: Path, root: Path | None, out: ModelText, above: tuple[Path, ...]
    ) -> None:
        self._path, self._folder, self._top, self._out = path, path.parent, top, out
        self._root = None if root is None else real(root)
        self._chain = (*above, real(path))
        self._included: set[Path] = set()

    def document(self) -> Element:
        """The root element, with includes in place and the files of all elements looked up."""
        root = _parse(self._path)
        if root.tag not in ("mujoco", "robot"):
            problem = "is not MJCF, whose first element is <mujoco>, nor URDF, whose first is <robot>"
            raise ModelError(f"{root} {problem}; convert it to one of them")
        self._include(root)
        if root.tag == "robot":
            _drop_visuals(root)
        elements = list(root.walk())
        search = _Search(elements, self._folder, self._root)
        # Other elements of a URDF name files for other programs, which MuJoCo does not open.
        naming = [one for one in elements if root.tag == "mujoco" or one.tag == "mesh"]
        for element in naming:
            for attribute, value in element.attributes.items():
                if attribute.startswith("file") and value:
                    element.attributes[attribute] = self._resolved(element, attribute, search)
        search.take_folders_out(root)
        return root

    def _include(self, parent: Element) -> None:
        """Put the content of included files in the place of the elements that name them."""
        children: list[Element] = []
        for child in parent.children:
            if child.tag != "include":
                self._include(child)
                children.append(child)
                continue
            if not (value := child.attributes.get("file")):
                raise ModelError(f'{child}: names no file; write file="...", or remove it')
            file = self._found(child, "file", [value])
            if real(file) in self._included:  # which also ends a circle
                raise ModelError(f'{child} file="{value}": is already included; include it once')
            self._included.add(real(file))
            content = _parse(file)
            self._include(content)
            children += content.children
        parent.children = children

    def _resolved(self, element: Element, attribute: str, search: _Search) -> str:
        """What the text calls the file that an element names."""
        value = element.attributes[attribute]
        if element.tag == "model":
            return self._child(element, self._found(element, attribute, [value]))
        names, blame = search.names(element, value), search.blame(element, value)
        found = self._found(element, attribute, names, blame)
        if PureWindowsPath(value).is_absolute() or os.path.isabs(value):
            self._out.absolute.append(f'{element} {attribute}="{value}"')
        text = str(real(found.parent) / found.name)  # the name stays: MuJoCo names elements after it
        if "\\" in text:
            raise ModelError(f"{text}: MuJoCo takes its backslash for '/'; rename the file or folder")
        self._out.assets.add(text)
        return text

    def _child(self, element: Element, file: Path) -> str:
        """What the text calls the file of a `<model>`, which is read too."""
        if real(file) in self._chain:
            raise ModelError(f"{element}: {file} is a part of itself; remove it")
        document = _Reader(file, self._top, self._root, self._out, self._chain).document()
        text, elements = plain_text(document)
        name = f"{_NOWHERE}/{len(self._out.children)}/{file.name}"
        self._out.children[name] = text.encode()
        self._out.child_elements.append(elements)
        return name

    def _found(self, element: Element, attribute: str, names: Sequence[str], blame: str = "") -> Path:
        """The file that one of `names` leads to.

        Raises:
            ModelError: there is none, or it is outside of the folder that the model may read.
        """
        value = element.attributes[attribute]
        names = [name.replace("\\", "/") for name in names]
        places = [self._folder / name for name in names]
        if element.file.parent != self._folder:  # it is included, and MuJoCo looks beside it last
            places.append(element.file.parent / value.replace("\\", "/"))
        found = next((place for place in places if os.path.isfile(place)), None)
        for place in [found] if found else places:
            if not is_inside(place, self._root):
                raise self._leads_out(place, blame or f'{element} {attribute}="{value}"')
        if found is None:
            raise ModelError(f"{element}: no file {value!r}; put it there, or correct the path")
        self._note(found, f'{element} {attribute}="{value}"')
        return found

    def _note(self, found: Path, blame: str) -> None:
        """Write down that a file is read."""
        top = self._top if found.is_relative_to(self._top) else real(self._top)
        name = os.path.relpath(os.path.normpath(found), top)
        if name == os.path.relpath(self._out.files[ITSELF], self._top):
            name = ITSELF
        known = self._out.files.setdefault(name, found)
        if real(known) != real(found):
            self._out.clashes.append(f"{blame}: would be one file with {known} in a copy of the model")

    def _leads_out(self, place: Path, blame: str) -> ModelError:
        assert self._root is not None
        wider = Path(os.path.commonpath([self._root, real(place)]))
        fix = "copy what it names into that folder"
        if wider not in (Path(wider.anchor), *_homes()):  # nobody should trust those
            fix += f", or trust a wider one: env.model_root={wider}"
        return ModelError(f"{blame}: leads out of the model's folder {self._root}; {fix}")


class _Search:
    """Where the files of a document's elements may be, by what its compiler elements say.

    Args:
        elements: all of the document, with those that are included.
        folder: of the document.
        root: the folder below which it may read.
    """

    def __init__(self, elements: list[Element], folder: Path, root: Path | None) -> None:
        self._folder, self._root = folder, root
        self._compilers = [element for element in elements if element.tag == "compiler"]
        self._is_urdf = elements[0].tag == "robot"
        self._strips = any(c.attributes.get("strippath") == "true" for c in self._compilers)
        self._says: dict[str, tuple[str, str]] = {}
        """Folder and who says it, by the compiler's attribute; the last one holds, as in MuJoCo."""
        for compiler in self._compilers:
            for attribute in ("assetdir", "meshdir", "texturedir"):
                if value := compiler.attributes.get(attribute):
                    said = (value.replace("\\", "/"), f'{compiler} {attribute}="{value}"')
                    kinds = ("meshdir", "texturedir") if attribute == "assetdir" else (attribute,)
                    self._says |= dict.fromkeys(kinds, said)

    def names(self, element: Element, value: str) -> list[str]:
        """The names by which a file may be found from the document's folder, likeliest first."""
        value, below = value.replace("\\", "/"), self._of(element)[0]
        if value.startswith(_PACKAGE):
            return self._names_in_package(value, below)
        bare = PureWindowsPath(value).name
        names = [os.path.join(below, bare if self._strips else value)]
        if self._is_urdf:  # MuJoCo takes the bare name, other programs follow the path
            names += [os.path.join(below, bare), value]
        return names

    def blame(self, element: Element, value: str) -> str:
        """The compiler element, where that leads out of the trusted folder; else empty."""
        below, who = self._of(element)
        return who if below and not is_inside(self._folder / below, self._root) else ""

    def take_folders_out(self, root: Element) -> None:
        """The paths are absolute now: nothing may be put before them, or cut off."""
        for compiler in self._compilers:
            for attribute in ("assetdir", "meshdir", "texturedir", "strippath"):
                compiler.attributes.pop(attribute, None)
        if self._is_urdf and not self._compilers:
            compiler = Element(root.file, root.line, "compiler", {})
            root.children.insert(0, Element(root.file, root.line, "mujoco", {}, [compiler]))
            self._compilers = [compiler]
        if self._is_urdf:  # its default is true
            self._compilers[0].attributes["strippath"] = "false"

    def _of(self, element: Element) -> tuple[str, str]:
        return self._says.get(_FOLDERS.get(element.tag, "meshdir"), ("", ""))

    def _names_in_package(self, value: str, below: str) -> list[str]:
        """Of `package://NAME/REST`: below a folder NAME around the document, or its REST there."""
        package, _, rest = value.removeprefix(_PACKAGE).partition("/")
        here = real(self._folder)
        around = [up for up in (here, *here.parents) if is_inside(up, self._root)]
        places = [str(up / package / rest) for up in around] + [str(up / rest) for up in around]
        return [*places, os.path.join(below, PureWindowsPath(rest).name)]


def _drop_visuals(robot: Element) -> None:
    """Take out of a URDF what is only looked at, as MuJoCo does: it often cannot read those files."""
    compilers = [element.attributes for element in robot.walk() if element.tag == "compiler"]
    if any(attributes.get("discardvisual") == "false" for attributes in compilers):
        return
    for link in robot.children:
        link.children = [child for child in link.children if child.tag != "visual"]


def is_inside(path: Path, root: Path | None) -> bool:
    """Whether `path`, links followed, is `root` or below it; None is everywhere."""
    return root is None or real(path).is_relative_to(real(root))


def real(path: Path) -> Path:
    """`path` without links, also where those lead in a circle, at which `Path.resolve` raises."""
    return Path(os.path.realpath(path))


def _homes() -> tuple[Path, Path]:
    home = real(Path(os.path.expanduser("~")))
    return home, home.parent


def _parse(file: Path) -> Element:
    try:
        return parse(file, file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); make it readable") from None
