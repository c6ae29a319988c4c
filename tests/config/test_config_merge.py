"""Mappings merge entry by entry: a file over its base, the command line over both; null resets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pi_incubator.cli._parser import Parser
from pi_incubator.config import ConfigError, load_config, load_with_sources, save_config
from pi_incubator.config.loader import override
from pi_incubator.errors import UserError

BASE = """
network: {name: cnn}
env: {pixels: {width: 48, height: 40, camera: pole, frames: 2, gray: true}}
randomization:
  friction: {low: 0.7, high: 1.2, names: foot*, shared: true}
  initial_state: {position: {low: -0.1, high: 0.1, names: leg*}, velocity: {low: -1, high: 1}}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


WAYS = {
    "file, mapping": ("env: {pixels: {width: 32}}", []),
    "file, dotted at the top": ("env.pixels.width: 32", []),
    "file, dotted in the section": ("env: {pixels.width: 32}", []),
    "command line, mapping": ("{}", ["env.pixels={width: 32}"]),
    "command line, dotted": ("{}", ["env.pixels.width=32"]),
    "file and command line": ("env: {pixels: {width: 8, gray: true}}", ["env.pixels.width=32"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_entry_keeps_the_other_entries(tmp_path: Path, base: Path, way: str) -> None:
    """One entry of a mapping is set wherever and however it is written, and its siblings stay."""
    text, overrides = WAYS[way]
    path = tmp_path / "a.yaml"
    path.write_text("base: base.yaml\n" + ("" if text == "{}" else text))
    pixels = load_config(path, overrides).env.pixels
    assert pixels is not None
    assert (pixels.width, pixels.height, pixels.camera, pixels.frames, pixels.gray) == (
        32,
        40,
        "pole",
        2,
        True,
    )


DOTTED = {
    "file, mapping": ("env: {limits: {m.x: [-1, 1]}}", []),
    "file, dotted": ("env.limits.m.x: [-1, 1]", []),
    "command line, mapping": ("{}", ['env.limits={"m.x": [-1, 1]}']),
    "command line, dotted": ("{}", ["env.limits.m.x=[-1, 1]"]),
}


@pytest.mark.parametrize("way", DOTTED)
def test_a_name_with_dots_is_one_name(tmp_path: Path, way: str) -> None:
    """An actuator `m` keeps its own limits beside one called `m.x`, in any order, and after saving."""
    text, overrides = DOTTED[way]
    base, path = tmp_path / "base.yaml", tmp_path / "a.yaml"
    base.write_text("env: {name: hold_pose, model: a.xml, limits: {m.x: [3, 4], m: [0, 2], n.y.z: [1, 2]}}")
    path.write_text("base: base.yaml\n" + ("" if text == "{}" else text))
    cfg, sources = load_with_sources(path, [*overrides, "env.limits.m=[0, 1]"])
    assert cfg.env.limits == {"m.x": (-1, 1), "m": (0, 1), "n.y.z": (1, 2)}
    assert sources["env.limits.m.x"] == ("command line" if overrides else f"{path}:2")
    save_config(cfg, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").env.limits == cfg.env.limits
    assert load_config(path, [*overrides, "env.limits=null", "env.limits.m.x.y=[5, 6]"]).env.limits == {
        "m.x.y": (5, 6)
    }


def test_json_merges_too(tmp_path: Path, base: Path) -> None:
    """A JSON file has the same keys."""
    path = tmp_path / "a.json"
    path.write_text('{"base": "base.yaml", "env.pixels.width": 32, "env": {"pixels": {"frames": 3}}}')
    pixels = load_config(path).env.pixels
    assert pixels is not None
    assert (pixels.width, pixels.height, pixels.frames) == (32, 40, 3)


@pytest.mark.parametrize(
    "text", ["randomization.friction={low: 0.3, high: 1.5}", "randomization.friction.low=0.3"]
)
def test_a_randomization_keeps_what_is_not_named(base: Path, text: str) -> None:
    """Bounds can be changed without losing names and `shared`."""
    friction = load_config(base, [text]).randomization.friction
    assert friction is not None
    assert (friction.low, friction.names, friction.shared) == (0.3, "foot*", True)


def test_mappings_within_mappings_merge(base: Path) -> None:
    """Depth does not matter: one number of the position, and the velocity stays."""
    for text in (
        "randomization.initial_state={position: {low: -0.5}}",
        "randomization.initial_state.position.low=-0.5",
    ):
        start = load_config(base, [text]).randomization.initial_state
        assert start is not None
        assert start.position is not None
        assert start.velocity is not None
        assert (start.position.low, start.position.names, start.velocity.low) == (-0.5, "leg*", -1.0)


def test_null_resets_a_mapping(tmp_path: Path, base: Path) -> None:
    """null drops all that was set before; what is set after it begins from the defaults."""
    assert load_config(base, ["randomization.friction=null"]).randomization.friction is None
    for overrides in (
        ["env.pixels=null", "env.pixels.width=32"],
        ["env.pixels=null", "env.pixels={width: 32}"],
    ):
        pixels = load_config(base, overrides).env.pixels
        assert pixels is not None
        assert (pixels.width, pixels.height, pixels.camera, pixels.gray) == (32, 64, None, False)
    defaults = load_config(base, ["env.pixels=null", "env.pixels={}"]).env.pixels
    assert defaults is not None
    assert (defaults.width, defaults.height) == (64, 64)
    path = tmp_path / "a.yaml"
    path.write_text("base: base.yaml\nenv.pixels: null\nenv.pixels.width: 32")
    pixels = load_config(path).env.pixels
    assert pixels is not None
    assert (pixels.width, pixels.height) == (32, 64)


def test_null_empties_the_task_parameters(tmp_path: Path) -> None:
    """A table of any names is reset in the same way."""
    path = tmp_path / "a.yaml"
    path.write_text("env: {task: {a: 1.0, b: 2.0}}")
    assert load_config(path, ["env.task=null"]).env.task == {}
    assert load_config(path, ["env.task=null", "env.task.c=3"]).env.task == {"c": 3.0}
    assert load_config(path, ["env.task={b: 4}"]).env.task == {"a": 1.0, "b": 4.0}


def test_an_empty_mapping_adds_nothing(base: Path) -> None:
    """`{}` turns on what is null, and leaves alone what is there."""
    pixels = load_config(base, ["env.pixels={}"]).env.pixels
    assert pixels is not None
    assert pixels.width == 48


def test_a_field_set_twice_in_one_file_is_refused(tmp_path: Path) -> None:
    """A dotted key does not win over, or lose to, the nested one in silence."""
    path = tmp_path / "a.yaml"
    path.write_text("env:\n  pixels: {width: 8}\nenv.pixels.width: 16")
    with pytest.raises(ConfigError, match=r"a\.yaml:3: env\.pixels\.width = 16: is set twice"):
        load_config(path)


def test_every_entry_knows_where_it_came_from(tmp_path: Path, base: Path) -> None:
    """Sources are kept by entry, and an error in a mapping as a whole names one of them."""
    path = tmp_path / "a.yaml"
    path.write_text("base: base.yaml\nenv:\n  pixels:\n    width: 32")
    _, sources = load_with_sources(path, ["env.pixels.frames=4"])
    assert sources["env.pixels.width"] == f"{path}:4"
    assert sources["env.pixels.height"] == f"{base}:3"
    assert sources["env.pixels.frames"] == "command line"
    path.write_text("randomization:\n  friction:\n    low: 0.5")
    with pytest.raises(ConfigError, match=r"a\.yaml:3: randomization\.friction\.high = null"):
        load_config(path)


def test_a_merged_config_is_saved_and_loaded(tmp_path: Path, base: Path) -> None:
    """What was merged is written in full."""
    cfg = load_config(base, ["env.pixels.width=32"])
    save_config(cfg, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == cfg


def parse(*argv: str) -> list[str]:
    parser = Parser(prog="pi-x")
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    overrides: list[str] = parser.parse_intermixed_args(list(argv)).overrides
    return overrides


def test_dashes_before_an_override_do_not_matter() -> None:
    """`--section.key=value` is `section.key=value`, before and behind an option."""
    argv = ("--algorithm.lr=1e-3", "--config", "f.yaml", "env.task.a=1", "--env.pixels.width=32")
    assert parse(*argv) == ["algorithm.lr=1e-3", "env.task.a=1", "env.pixels.width=32"]


def test_an_override_in_two_words_is_told_how() -> None:
    """`--section.key value` would need the name of every option: one line says what to write."""
    with pytest.raises(UserError, match=r"write a setting as algorithm\.lr=VALUE, in one word"):
        parse("--config", "f.yaml", "--algorithm.lr", "1e-3")


@pytest.mark.parametrize(
    "text", ["a b", 'a"b', "a'b", "\\", "a\nb\t", "é😀", "#", ": ", "{}", "null", "\x7f\u2028"]
)
def test_an_override_that_is_made_keeps_every_character(base: Path, text: str) -> None:
    """What a command passes on as an override is read back as it was, also in a list."""
    overrides = [override("experiment.output_dir", text), "algorithm.name=distillation", "env.pixels=null"]
    cfg = load_config(base, [*overrides, "network.name=mlp", override("algorithm.teachers", [text, "b"])])
    assert cfg.experiment.output_dir == text
    assert cfg.algorithm.teachers == (text, "b")  # type: ignore[attr-defined]
