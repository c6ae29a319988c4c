"""Every mistake a user can make in an experiment file is one line: file, field, value and what to do."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.config.loader import MAX_BYTES


def message(path: Path, *overrides: str) -> str:
    """The report on `path`, checked to be quick and one line."""
    start = time.process_time()  # of this process: other work on the machine does not count
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert time.process_time() - start < 5
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


BAD_VALUES = [
    ("algorithm: {lr: -1}", ":1: algorithm.lr = -1: must be greater than 0; set a positive number"),
    ("algorithm: {lr: 0}", ":1: algorithm.lr = 0: must be greater than 0"),
    ("algorithm: {lr: .nan}", ":1: algorithm.lr = nan: must be a finite number"),
    ("algorithm: {lr: .inf}", ":1: algorithm.lr = inf: must be a finite number"),
    ("algorithm: {lr: true}", ":1: algorithm.lr = true: must be a number"),
    ("algorithm: {lr: '1e-3'}", ":1: algorithm.lr = '1e-3': must be a number; write a plain number"),
    ("algorithm: {gamma: 1.5}", ":1: algorithm.gamma = 1.5: must be less than or equal to 1"),
    ("env: {num_envs: 0}", ":1: env.num_envs = 0: must be greater than or equal to 1"),
    ("env: {num_envs: '64'}", ":1: env.num_envs = '64': must be an integer; write a plain number"),
    ("env: {num_envs: true}", ":1: env.num_envs = true: must be an integer"),
    ("env: {num_envs: 6.4}", ":1: env.num_envs = 6.4: must be an integer; write a whole number"),
    ("env: {num_envs: null}", ":1: env.num_envs = null: must be an integer"),
    ("env: {num_envs: 1000000000000}", ":1: env.num_envs = 1000000000000: must be less than or equal to"),
    (
        "training: {total_steps: 3e6}",
        ":1: training.total_steps = 3000000.0: must be an integer; write 3000000,",
    ),
    ("experiment: {seed: -1}", ":1: experiment.seed = -1: must be greater than or equal to 0"),
    (
        "experiment: {name: ../a}",
        ":1: experiment.name = '../a': holds '/', which no name of a folder can have",
    ),
    ("experiment: {name: ..}", ":1: experiment.name = '..': names another folder"),
    ("experiment: {name: '.'}", ":1: experiment.name = '.': names another folder"),
    ('experiment: {name: "a\\0b"}', ":1: experiment.name = 'a\\x00b': holds the character NUL"),
    (f"experiment: {{name: {'é' * 128}}}", ": has 256 bytes, a folder's name at most 255; shorten it"),
    ('experiment: {output_dir: "a\\0b"}', ":1: experiment.output_dir = 'a\\x00b': holds the character NUL"),
    ('env: {model: "a\\0b"}', ":1: env.model = 'a\\x00b': holds the character NUL"),
    ("experiment: {name: 2024-01-01}", ":1: experiment.name = datetime.date(2024, 1, 1): must be text"),
    ("experiment: {output_dir: ''}", ":1: experiment.output_dir = '': must not be empty"),
    ("tracking: {uri: 5}", ":1: tracking.uri = 5: must be text; write it in quotes"),
    ("network: {hidden_sizes: 64}", ":1: network.hidden_sizes = 64: must be a list"),
    ("network: {hidden_sizes: []}", ":1: network.hidden_sizes = []: must not be empty"),
    ("network: {hidden_sizes: [64, '64']}", ":1: network.hidden_sizes[1] = '64': must be an integer"),
    ("network: {activation: thanh}", ":1: network.activation = 'thanh': must be 'tanh', 'elu'"),
    ("network: {normalize_observations: yes}", ":1: network.normalize_observations = 'yes': must be true"),
    (
        "env: {backend: wrap}",
        ":1: env.backend = 'wrap': must be 'auto', 'mujoco', 'warp', 'mjx' or 'newton'; did you mean warp?",
    ),
]

BAD_KEYS = [
    ("env: {num_env: 3}", ":1: env.num_env = 3: unknown field; did you mean env.num_envs?"),
    ("env: {lr: 3}", ":1: env.lr = 3: unknown field; did you mean algorithm.lr?"),
    ("env: {zzz: 3}", ":1: env.zzz = 3: unknown field; env has: name, backend"),
    ("env: {1: 3}", ":1: env.1 = 3: unknown field"),
    ("algoritm: {}", ":1: algoritm: unknown section; did you mean algorithm?"),
    ("zzz: {}", ":1: zzz: unknown section; the sections are: experiment, env"),
    ("lr: 1e-3", ":1: lr = 0.001: is not a section; did you mean algorithm.lr?"),
    ("env:", ":1: env = null: must be a section of fields"),
    ("env: 5", ":1: env = 5: must be a section of fields"),
    ("env: {}\nenv: {}", ":2: env: appears twice, on lines 1 and 2"),
    ("algorithm:\n  lr: 1\n  lr: 2", ":3: algorithm.lr: appears twice, on lines 2 and 3; keep one"),
    ('"a\\nb": 1', ": unknown section"),
]

BAD_YAML = [
    ("", ": the top level is not a mapping"),
    ("[1]", ": the top level is not a mapping"),
    ("env", ": the top level is not a mapping"),
    ("env: {}\na: b: c", ":2: is not valid YAML"),
    ("env:\n\tnum_envs: 3", ":2: is not valid YAML"),
    ("env: {}\n---\nenv: {}", ":2: is not valid YAML"),
    ("env: !thing 1", ":1: is not valid YAML"),
    ("env: !!int thing", ": is not valid YAML"),
    ("env: 2024-13-45", ": is not valid YAML"),
    ("env: \x07", ": is not valid YAML"),
    ("[" * 60_000, ":1: is not valid YAML (nested too deeply)"),
    ("- " * 30_000, ":1: is not valid YAML (nested too deeply)"),
]

BAD_JSON = [
    ('{"env": {"num_envs": 1, "num_envs": 2}}', ": num_envs = 2: appears twice"),
    ('{"algorithm": {"lr": NaN}}', ": algorithm.lr = nan: must be a finite number"),
    ('{"env": {"num_envs": "64"}}', ": env.num_envs = '64': must be an integer"),
    ('{"algorithm": {"lrr": 1}}', ": algorithm.lrr = 1: unknown field; did you mean algorithm.lr?"),
    ('{\n"env": {,}}', ":2: is not valid JSON"),
    ("[" * 60_000, ": is not valid JSON"),
    ("[]", ": the top level is not a mapping"),
]

CROSS_FIELD = [
    (
        "env: {num_envs: 100}",
        ": algorithm.minibatch_size = 512: must divide env.num_envs * algorithm.horizon = 100 * 64 = 6400 "
        "(this value is the default); set it to 400 or 640, or env.num_envs to 96 or 104",
    ),
    (
        "algorithm: {minibatch_size: 100000}",
        ":1: algorithm.minibatch_size = 100000: must divide env.num_envs * algorithm.horizon = "
        "64 * 64 = 4096; set it to 4096, or env.num_envs to 3125",
    ),
    (
        "training: {total_steps: 5}",
        ":1: training.total_steps = 5: must be at least one iteration, env.num_envs * algorithm.horizon = "
        "64 * 64 = 4096; set it to 4096 or more",
    ),
]


@pytest.mark.parametrize(("text", "expected"), BAD_VALUES + BAD_KEYS + BAD_YAML + CROSS_FIELD)
def test_yaml(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    report = message(path)
    assert report.startswith(str(path))
    assert expected in report


@pytest.mark.parametrize(("text", "expected"), BAD_JSON)
def test_json(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert message(path).startswith(f"{path}{expected}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algorithm.lr", "'algorithm.lr': is not section.key=value; for example algorithm.lr=3e-4"),
        ("", "'': is not section.key=value"),
        ("=", "'=': is not section.key=value"),
        ("env={}", "'env={}': is not section.key=value"),
        ("lr=1", "'lr=1': is not section.key=value; did you mean algorithm.lr=1?"),
        ("algorithm.lrr=1", "algorithm.lrr = 1: unknown field; did you mean algorithm.lr?"),
        ("algorithm.lr.x=1", "algorithm.lr.x = 1: unknown field; did you mean algorithm.lr?"),
        ("envv.num_envs=1", "envv: unknown section; did you mean env?"),
        ("base.x=1", "base: unknown section"),
        ("network.hidden_sizes=[64", "network.hidden_sizes = '[64': is not valid YAML"),
        ("network.hidden_sizes=64,64", "network.hidden_sizes = '64,64': must be a list"),
        ("env.limits.m.x=3", "env.limits.m.x = 3: must be a list of two numbers; write [low, high]"),
        ("env.limits.m=[1]", "env.limits.m = [1]: must be a list of two numbers; write [low, high]"),
        ("env.limits.m=[a, 1]", "env.limits.m[0] = 'a': must be a number"),
        ("env.limits=[0, 1]", "env.limits = [0, 1]: must be a mapping; write {NAME: [low, high]}"),
        ("env.task=3", "env.task = 3: must be a mapping of names to values; write them in braces"),
        ("algorithm.lr=", "algorithm.lr = null: must be a number"),
        ("algorithm.lr=-1", "algorithm.lr = -1: must be greater than 0"),
    ],
)
def test_override(tmp_path: Path, override: str, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("algorithm: {lr: 1e-3}")
    assert message(path, override).startswith(f"command line: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: nope.yaml", r"base = 'nope.yaml': .*nope.yaml: file not found"),
        ("base: other.yam", r"base = 'other.yam': .*file not found; did you mean .*other.yaml\?"),
        ("base: .", r"base = '.': .* is a directory"),
        ("base: 5", r"base = 5: must be a file name"),
        ("base:", r"base = null: must be a file name"),
        (
            "base: {cpu: other.yaml}",
            r"base = {'cpu': 'other.yaml'}: must be a file name; name one",
        ),
        ("base: {cpu: other.yaml, cuda: 1}", r"base = {.*, 'cuda': 1}: must be a file name"),
        ("base: a.yaml", r"base = 'a.yaml': inherits from itself \(a.yaml -> a.yaml\)"),
        ('base: "a\\0b.yaml"', r"base = .*: file not found"),
    ],
)
def test_base(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    (tmp_path / "other.yaml").write_text("env: {}")
    assert re.match(f"{re.escape(str(path))}:1: {expected}", message(path))


def test_base_cycle_names_the_chain(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("env: {}\nbase: a.yaml")
    report = message(tmp_path / "a.yaml")
    assert report.startswith(f"{tmp_path / 'b.yaml'}:2: base = 'a.yaml'")
    assert "(a.yaml -> b.yaml -> a.yaml)" in report


def test_mistake_in_a_base_names_the_base(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("algorithm:\n  lr: -1")
    assert message(tmp_path / "a.yaml").startswith(f"{tmp_path / 'b.yaml'}:2: algorithm.lr = -1")


def test_missing_file_suggests_a_sibling(tmp_path: Path) -> None:
    (tmp_path / "baseline.yaml").write_text("env: {}")
    report = message(tmp_path / "baselin.yaml")
    assert "file not found" in report
    assert f"did you mean {tmp_path / 'baseline.yaml'}?" in report
    assert "file not found; check the path" in message(tmp_path / "nowhere" / "a.yaml")


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is a directory" in message(tmp_path)
    (tmp_path / "a.toml").touch()
    assert "is neither YAML nor JSON" in message(tmp_path / "a.toml")
    path = tmp_path / "a.yaml"
    path.write_bytes("experiment: {name: é}".encode("latin-1"))
    assert "is not UTF-8 text (byte 19)" in message(path)
    path.write_text("#" * (MAX_BYTES + 1))
    assert "is larger than" in message(path)

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    path.write_text("env: {}")
    monkeypatch.setattr(Path, "read_text", refuse)  # the tests may run as root, who can read anything
    assert "cannot be read (Permission denied)" in message(path)


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("env: {num_envs: 0}\nalgorithm: {lr: -1, gamma: 2}")
    report = message(path)
    assert "env.num_envs = 0" in report
    assert report.endswith("(and 2 more)")


def test_huge_values_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10)]
    path.write_text("env:\n  num_envs:\n    " + "\n    ".join(levels))
    assert len(message(path)) < 500 + len(str(path))


def test_long_paths_are_shown_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    folder = "/".join(["a_folder_with_a_long_name"] * 8)
    path.write_text(f"base: {folder}/b.yaml")
    assert f"base = '{folder}/b.yaml': " in message(path)


def test_suggested_sizes_work(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("env: {num_envs: 100}\nalgorithm: {horizon: 24, minibatch_size: 512}")
    sizes, envs = re.search(r"set it to (.+), or env.num_envs to (.+)$", message(path)).groups()  # type: ignore[union-attr]
    for size in sizes.split(" or "):
        assert isinstance(load_config(path, [f"algorithm.minibatch_size={size}"]), ExperimentConfig)
    for num_envs in envs.split(" or "):
        assert isinstance(load_config(path, [f"env.num_envs={num_envs}"]), ExperimentConfig)
