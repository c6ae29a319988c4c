"""The lock holds what `requirements.txt` pins, and a hash for every package."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[\w+\])?==([^\s;+]+)", re.M)


def pins(text):
    return {re.sub(r"[-_.]+", "-", name.lower()): version for name, version in PIN.findall(text)}


def test_the_lock_is_that_of_the_requirements():
    wanted = pins((ROOT / "requirements.txt").read_text())
    locked = pins((ROOT / "requirements.lock").read_text())
    assert len(locked) > len(wanted) > 20
    assert {name: locked.get(name) for name in wanted} == wanted


def test_every_locked_package_has_a_hash_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[A-Za-z])", text, flags=re.M)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "file:" not in text
