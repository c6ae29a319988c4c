"""The XML of a robot: read once, with the file and line of every element, and written in a plain form.

MuJoCo reads the plain form alone: one element on each line, its attributes quoted, nothing else. All parsers
see the same in it, so what is checked here is what MuJoCo reads. The line in MuJoCo's messages is the number
of the element, which knows its own file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from envs_gpu.errors import ModelError

_COMMENT, _CDATA = b"<!--", b"<![CDATA["
_MARK = re.compile(rb"""["'<>]""")
_NOT_NEW_LINE = re.compile(rb"[^\n]")
_INDENT = {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}
MAX_DEPTH = 400
"""Of elements; MuJoCo's own parser gives up at 500."""


@dataclass
class Element:
    """One element of a file, with what is in it."""

    file: Path
    line: int
    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)

    def __str__(self) -> str:
        name = self.attributes.get("name")
        return f"{self.file}, line {self.line}, <{self.tag}" + (f' name="{name}">' if name else ">")

    def walk(self) -> Iterator[Element]:
        """This element and all that is in it, in the order of the file."""
        yield self
        for child in self.children:
            yield from child.walk()


def parse(file: Path, content: bytes) -> Element:
    """The root element of an XML file.

    Raises:
        ModelError: it is not well-formed, or has a DOCTYPE, which parsers read in different ways.
    """
    root: list[Element] = []
    path: list[Element] = []
    doctypes: list[ModelError] = []
    parser = expat.ParserCreate("UTF-8")  # as MuJoCo, which ignores the declared encoding

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(file, parser.CurrentLineNumber, tag, attributes)
        if len(path) >= MAX_DEPTH:
            raise ModelError(f"{element}: more than {MAX_DEPTH} elements within each other; make them fewer")
        (path[-1].children if path else root).append(element)
        path.append(element)

    def doctype(*_: object) -> None:
        doctypes.append(ModelError(f"{file}, line {parser.CurrentLineNumber}: has a DOCTYPE; remove it"))

    def entity(*_: object) -> None:
        raise ModelError(f"{file}, line {parser.CurrentLineNumber}: declares an XML entity; write it out")

    parser.StartElementHandler, parser.EndElementHandler = start, lambda _: path.pop()
    parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = doctype, entity
    try:
        parser.Parse(_without_comments(content), True)
    except expat.ExpatError as error:
        if doctypes:
            raise doctypes[0] from None
        reason = expat.ErrorString(error.code)
        raise ModelError(f"{file}, line {error.lineno}: not well-formed XML ({reason}); correct it") from None
    if doctypes:
        raise doctypes[0]
    return root[0]


def plain_text(root: Element) -> tuple[str, list[Element]]:
    """The plain form of a document, and its elements: number k, counted from one, is on line k."""
    elements: list[Element] = []
    parts: list[str] = []

    def write(element: Element) -> None:
        elements.append(element)
        attributes = "".join(
            f" {name}={quoteattr(value, _INDENT)}" for name, value in element.attributes.items()
        )
        start = "\n" if len(elements) > 1 else ""
        parts.append(f"{start}<{element.tag}{attributes}{'>' if element.children else '/>'}")
        for child in element.children:
            write(child)
        if element.children:
            parts.append(f"</{element.tag}>")

    write(root)
    return "".join(parts), elements


def _without_comments(content: bytes) -> bytes:
    """`content` with comments blanked out: MuJoCo takes some that XML forbids, such as `<!-- a -- b -->`."""
    parts, kept, at = [], 0, content.find(b"<")
    while at >= 0:
        if content.startswith(_COMMENT, at):
            end = _after(content, b"-->", at + len(_COMMENT))
            if end > 0:
                parts += [content[kept:at], _NOT_NEW_LINE.sub(b" ", content[at:end])]
                kept = end
        elif content.startswith(_CDATA, at):
            end = _after(content, b"]]>", at + len(_CDATA))
        else:
            end = _end_of_tag(content, at + 1)
        at = content.find(b"<", end) if end > 0 else -1
    return b"".join((*parts, content[kept:]))


def _end_of_tag(content: bytes, at: int) -> int:
    """Where the tag that `at` is in ends, or the next one begins; -1 where a quotation has no end."""
    while found := _MARK.search(content, at):
        if found[0] == b"<":
            return found.start()
        if found[0] == b">":
            return found.end()
        at = _after(content, found[0], found.end())
        if at < 0:
            return -1
    return -1


def _after(content: bytes, what: bytes, at: int) -> int:
    """The place behind the next `what`; -1 where there is none."""
    found = content.find(what, at)
    return -1 if found < 0 else found + len(what)
