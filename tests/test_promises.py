"""Every test that a page names as the holder of a promise exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["docs/reliability.md", "SECURITY.md"]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def names_in(path):
    """The names of the tests in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES)
def test_every_named_test_exists(page):
    named = NAMED.findall((ROOT / page).read_text(encoding="utf-8"))
    assert len(named) > 8
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(path)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_names_its_test(page):
    rows = re.findall(r"^\| (?!promise|-|actions|sites)(.+?) \| (.*) \|$", (ROOT / page).read_text(), re.M)
    assert len(rows) > 8
    assert [promise for promise, holder in rows if not NAMED.search(holder)] == []


def test_the_page_knows_every_action_and_site():
    from pi_incubator import faults

    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    names = [*faults.ACTIONS, *faults.VALUES, *faults.SITES, *(f"save:{phase}" for phase in faults.PHASES)]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_catalogue_of_faults_is_whole():
    """Each fault has a name of its own, and every site of `PI_FAULT` that a run passes is tried."""
    from tests.faults.catalogue import CATALOGUE

    names = [entry.fault for entry in CATALOGUE]
    assert len(set(names)) == len(names) > 80
