"""Mutants of a source file: the same text with one small mistake in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

OPPOSITE = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "//", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>", ast.RShift: "<<", ast.And: "or", ast.Or: "and",
}  # fmt: skip
"""What an operator is exchanged for."""


@dataclass(frozen=True)
class Mutant:
    """One mistake."""

    line: int
    """Where it is, counted from 1."""
    before: str
    after: str
    source: str
    """The whole file with the mistake."""

    @property
    def label(self) -> str:
        """The mistake in one line."""
        return f"{_one_line(self.before)} -> {_one_line(self.after)}"


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines.

    Docstrings, messages of exceptions, annotations and decorators are left alone.
    """
    encoded = source.encode()
    starts = [0]
    for line in encoded.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, start, end, after in _changes(ast.parse(source), encoded, starts):
        text = encoded[:start] + after.encode() + encoded[end:]
        before = encoded[start:end].decode()
        if before != after:
            found.append(Mutant(node.lineno, before, after, text.decode()))
    return sorted(found, key=lambda mutant: mutant.line)


def _changes(tree: ast.AST, text: bytes, starts: list[int]) -> Iterator[tuple[ast.AST, int, int, str]]:
    """Nodes with the bytes that are replaced, and what replaces them."""

    def place(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def between(left: ast.AST, right: ast.AST, operator: ast.AST) -> Iterator[tuple[ast.AST, int, int, str]]:
        start, end = place(left)[1], place(right)[0]
        gap = text[start:end].decode()
        words = re.search(r"not\s+in|is\s+not|and|or|in|is|[<>=!+\-*/%&|]+", gap)
        if words and type(operator) in OPPOSITE:
            new = gap[: words.start()] + OPPOSITE[type(operator)] + gap[words.end() :]
            yield left, start, end, new

    for node in _code(tree):
        match node:
            case ast.Compare(left=left, ops=operators, comparators=rights):
                for operator, pair in zip(operators, pairwise([left, *rights]), strict=True):
                    yield from between(*pair, operator)
            case ast.BoolOp(op=operator, values=values):
                for pair in pairwise(values):
                    yield from between(*pair, operator)
            case ast.BinOp(left=left, op=operator, right=right) if not (_is_text(left) or _is_text(right)):
                yield from between(left, right, operator)
            case ast.AugAssign(target=left, op=operator, value=right):
                start, end = place(left)[1], place(right)[0]
                yield node, start, end, " = "
            case ast.UnaryOp(op=ast.Not() | ast.USub() as operator):
                start = place(node)[0]
                yield node, start, start + (3 if isinstance(operator, ast.Not) else 1), ""
            case ast.Constant(value=bool() as value):
                yield node, *place(node), str(not value)
            case ast.Constant(value=int() | float() as value):
                yield node, *place(node), repr(value + 1 if value + 1 != value else 2 * value)
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant):
                    start, end = place(test)
                    yield test, start, end, f"not ({text[start:end].decode()})"
            case ast.Raise() | ast.Expr(value=ast.Call() | ast.Await() | ast.YieldFrom()) | ast.Assert():
                yield node, *place(node), "pass"
            case ast.Return(value=ast.expr() as value) if not _is_none(value):
                yield node, *place(node), "return None"
            case ast.Assign(value=value) if not _is_none(value):
                yield node, *place(value), "None"
            case ast.Break():
                yield node, *place(node), "continue"
            case ast.Continue():
                yield node, *place(node), "break"


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that are run for what they do."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    if isinstance(node, ast.Raise):  # not its message
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if (
                isinstance(child, ast.AST)
                and not _is_docstring(child)
                and not isinstance(child, ast.JoinedStr)
            ):
                yield from _code(child)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _one_line(text: str, room: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= room else text[: room - 3] + "..."
