"""A mutant of a certain file, with a name that outlives changes elsewhere in the file."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass

from tests.mutation.mutants import Mutant, mutants_of

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Candidate:
    """A mutant that may be tested."""

    file: str
    """Relative to the root."""
    source_line: str
    """The line with the mistake, without the mistake and without indentation."""
    nth: int
    """Which of several such mistakes in such lines of the file."""
    mutant: Mutant
    is_in_function: bool
    """Otherwise it is run once, when its module is imported."""

    @property
    def key(self) -> Key:
        """What identifies it."""
        return self.file, self.source_line, self.mutant.label, self.nth


def candidates_of(file: str, source: str) -> list[Candidate]:
    """All mutants of a file."""
    lines, seen, candidates = source.splitlines(), Counter[tuple[str, str]](), []
    in_functions = _lines_in_functions(source)
    for mutant in mutants_of(source):
        source_line = lines[mutant.line - 1].strip()
        nth = seen[source_line, mutant.label]
        candidates.append(Candidate(file, source_line, nth, mutant, mutant.line in in_functions))
        seen[source_line, mutant.label] += 1
    return candidates


def _lines_in_functions(source: str) -> set[int]:
    """The lines of the bodies of functions, counted from 1."""
    return {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for line in range(node.body[0].lineno, (node.end_lineno or 0) + 1)
    }
