"""Whatever a file or a command line says, the answer is a config or one line: nothing else escapes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pi_incubator.config import ConfigError, ExperimentConfig, load_config, save_config
from pi_incubator.config.errors import SECTIONS, TYPES
from pi_incubator.config.section import choices

QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NAMES = sorted({field for field, _ in TYPES})
HUGE = [2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -1, 0, 1e15, 1e16, 1e300, 1.7e308, 5e-324, -1e308]
SCALARS = st.one_of(
    st.sampled_from(
        [*HUGE, math.inf, math.nan, None, True, False, "", "auto", "null", "\ud800", "a\0b", "~x/y"]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
YAML_TEXTS = (
    *(
        "0x" + "f" * 5000,
        "0b1",
        "0o7",
        "1_000",
        "1e400",
        "-.inf",
        ".NaN",
        "2001-01-01",
        "2001-13-45",
        "12:30:45",
    ),
    *("!!binary 'a'", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!python/none", "!x", "&a", "*a", "%x"),
    *(
        "@x",
        "`x",
        "|a",
        ">a",
        "?",
        ":",
        "-",
        "[a",
        "{a",
        "a:b",
        "#a",
        "'a",
        '"a',
        '"\\x07"',
        "~",
        "Null",
        "TRUE",
    ),
)
YAML_SCALARS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(YAML_TEXTS),
    st.from_regex(r"[-+0-9.eExob_:~!&*'\"\[\]{}#%@|>?,]{1,15}", fullmatch=True),
)


def fitting(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that a field of this type may well have, beside those that it may not."""
    found: list[st.SearchStrategy[Any]] = []
    for choice in choices(annotation):
        if choice is bool:
            found.append(st.booleans())
        elif choice is int:
            found.append(st.one_of(st.integers(0, 100), st.sampled_from([2**k for k in range(32)])))
        elif choice is float:
            found.append(st.one_of(st.floats(0, 1), st.floats(allow_nan=False, allow_infinity=False)))
        elif choice is str:
            found.append(st.text(min_size=1, max_size=20))
        elif get_origin(choice) is tuple:
            found.append(st.lists(fitting(get_args(choice)[0]), max_size=3))
        elif get_origin(choice) is dict:
            values = fitting(get_args(choice)[1])
            found.append(st.dictionaries(st.text(min_size=1, max_size=10), values, max_size=3))
        elif get_origin(choice) is Literal:
            found.append(st.sampled_from(get_args(choice)))
    return st.one_of(*found) if found else st.just({})


FITTING = {field: fitting(annotation) for field, annotation in TYPES}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A file with dotted keys: some values fit, some do not."""
    fields = draw(st.lists(st.sampled_from(NAMES), max_size=6, unique=True))
    return {field: draw(st.one_of(FITTING[field], SCALARS)) for field in fields}


def read(path: Path, *overrides: str) -> ExperimentConfig | None:
    """The config, or None where there is an error, which is one line of a readable length."""
    report = ""
    try:
        return load_config(path, overrides)
    except ConfigError as error:
        report = str(error)
    assert len(report.splitlines()) == 1
    assert len(report) < 3000
    return None


@QUICK
@given(document=documents())
def test_values_of_every_field(tmp_path: Path, document: dict[str, Any]) -> None:
    """Random values of random fields; what is accepted is saved and read back equal."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    cfg = read(path)
    if cfg is not None:
        save_config(cfg, tmp_path / "saved.yaml")
        assert load_config(tmp_path / "saved.yaml") == cfg


@QUICK
@given(field=st.sampled_from(NAMES), text=YAML_SCALARS)
def test_yaml_scalars_on_the_command_line(tmp_path: Path, field: str, text: str) -> None:
    """Random text as the value of an override."""
    path = tmp_path / "a.yaml"
    path.write_text("{}")
    read(path, f"{field}={text}")


@QUICK
@given(field=st.sampled_from(NAMES), text=YAML_SCALARS)
def test_yaml_scalars_in_a_file(tmp_path: Path, field: str, text: str) -> None:
    """Random text as a value in a file."""
    path = tmp_path / "a.yaml"
    path.write_text(f"{field}: {text}", encoding="utf-8", errors="replace")
    read(path)


@QUICK
@given(
    data=st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*SECTIONS, *NAMES, "name", "low", ".", ""]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_nested_documents(tmp_path: Path, data: Any) -> None:
    """Mappings and lists where none belong."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    read(path)


@pytest.mark.parametrize(
    "text",
    [
        "env.episode_length_s=1e300",
        "env.observation_history=9223372036854775808",
        "env.task.x=1e308",
        "algorithm.lr=1e308",
        "algorithm.minibatch_size=99999999999999999999",
        "network.hidden_sizes=[" + ", ".join(["8"] * 1000) + "]",
        "evaluation.video_length_s=1e12",
        "randomization.pushes={low: -1e300, high: 1e300, per: interval}",
        "experiment.seed=0x" + "f" * 5000,
        "training.total_steps=1" + "0" * 5000,
    ],
)
def test_absurd_numbers_are_refused(tmp_path: Path, text: str) -> None:
    """Numbers that would overflow later have a bound here."""
    path = tmp_path / "a.yaml"
    path.write_text("{}")
    assert read(path, text) is None


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    """A small file whose aliases stand for millions of keys is refused at once."""
    path = tmp_path / "a.yaml"
    inner = ", ".join(f"k{index}: 1" for index in range(1000))
    outer = ", ".join(f"k{index}: *a" for index in range(1000))
    path.write_text(f"env:\n  x: &a {{{inner}}}\n  y: {{{outer}}}\n")
    with pytest.raises(ConfigError, match="more than 10000 keys"):
        load_config(path)


def test_a_mapping_within_itself_is_one_line(tmp_path: Path) -> None:
    """A recursive alias ends."""
    path = tmp_path / "a.yaml"
    path.write_text("env:\n  pixels: &a\n    width: *a\n")
    with pytest.raises(ConfigError, match=r"env\.pixels\.width"):
        load_config(path)
