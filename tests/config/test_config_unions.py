"""Sections whose keys depend on their name, settings within settings, and errors from lower layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs_gpu.errors import SettingError
from pi_incubator.config import ConfigError, explain_settings, load_config, load_with_sources


def message(path: Path, *overrides: str) -> str:
    """The one-line report on `path`."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "algorithm:\n  name: ppox",
            ":2: algorithm.name = 'ppox': unknown algorithm; did you mean 'ppo'? known: a2c, bc, ",
        ),
        ("network:\n  name: grru", ":2: network.name = 'grru': unknown network; did you mean 'gru'? known: "),
        ("algorithm: {name: 3}", ":1: algorithm.name = 3: unknown algorithm; "),
        ("network: {name: [mlp]}", ":1: network.name = ['mlp']: unknown network; "),
    ],
)
def test_unknown_names_suggest_the_nearest(path: Path, text: str, expected: str) -> None:
    """An algorithm or network that does not exist is one line, with the nearest that does."""
    path.write_text(text)
    assert message(path).startswith(f"{path}{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "algorithm:\n  tau: 0.1",
            ":2: algorithm.tau = 0.1: only algorithm.name = cql or dreamer or flash_sac or iql or sac or "
            "td3 or td3_bc or world_model_gradient has it; remove it",
        ),
        (
            "algorithm:\n  name: sac\n  clip_value_loss: true",
            ":3: algorithm.clip_value_loss = true: only algorithm.name = ppo has it; remove it",
        ),
        (
            "algorithm:\n  name: sac\n  minibatch_size: 64",
            ":3: algorithm.minibatch_size = 64: only algorithm.name = a2c or distillation or grpo or "
            "ppo has it; remove it",
        ),
        (
            "network: {channels: [8]}",
            ":1: network.channels = [8]: only network.name = cnn or rssm_pixels has it; remove it",
        ),
    ],
)
def test_a_key_of_another_member_says_which_has_it(path: Path, text: str, expected: str) -> None:
    """A key that another algorithm or network has is not merely unknown."""
    path.write_text(text)
    assert message(path) == f"{path}{expected}"


def test_another_network_keeps_the_keys_that_both_have(tmp_path: Path, path: Path) -> None:
    """Sizes of layers mean the same in every network; what only the inherited network has is dropped."""
    (tmp_path / "base.yaml").write_text(
        "network: {name: cnn, channels: [8], hidden_sizes: [32]}\nenv: {pixels: {}}"
    )
    path.write_text("base: base.yaml\nnetwork: {name: gru}\nenv: {pixels: null}")
    network = load_config(path).network
    assert (network.name, network.hidden_sizes) == ("gru", (32,))
    assert not hasattr(network, "channels")


@pytest.mark.parametrize("place", ["file", "command line"])
def test_another_algorithm_keeps_no_key(tmp_path: Path, path: Path, place: str) -> None:
    """A learning rate or a discount means something else in another algorithm: its defaults are taken."""
    (tmp_path / "base.yaml").write_text("algorithm: {gamma: 0.5, horizon: 32, lr: 0.1}")
    path.write_text("base: base.yaml\n" + ("algorithm: {name: sac}" if place == "file" else ""))
    algorithm = load_config(path, [] if place == "file" else ["algorithm.name=sac"]).algorithm
    assert (algorithm.name, algorithm.gamma, algorithm.horizon) == ("sac", 0.99, 1)


def test_the_same_name_again_keeps_everything(tmp_path: Path, path: Path) -> None:
    """Naming the algorithm that the base has, even by default, changes nothing."""
    (tmp_path / "base.yaml").write_text("algorithm: {gamma: 0.5}")
    path.write_text("base: base.yaml\nalgorithm: {name: ppo}")
    assert load_config(path).algorithm.gamma == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "algorithm: {name: sac}\nnetwork: {name: mlp,\n  init_log_std: 1}",
            ":3: network.init_log_std = 1.0: has no effect with algorithm.name = sac; remove it",
        ),
        (
            "algorithm: {name: sac,\n  horizon: 4}\ntraining: {overlap: true}",
            ":2: algorithm.horizon = 4: the policy would change between the steps of an iteration with "
            "training.overlap; set it to 1, or training.overlap to false",
        ),
        (
            "algorithm: {name: sac}\nnetwork: {init_log_std: -1}",
            ":2: network.init_log_std = -1.0: has no effect with algorithm.name = sac; remove it",
        ),
        (
            "algorithm:\n  desired_kl: 0.02",
            ":2: algorithm.desired_kl = 0.02: has no effect with algorithm.lr_schedule = linear; "
            "remove it, or set algorithm.lr_schedule to adaptive",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(path: Path, text: str, expected: str) -> None:
    """What would be ignored in the chosen combination is an error."""
    path.write_text(text)
    assert message(path) == f"{path}{expected}"


def test_the_distillation_section_says_where_it_moved(path: Path) -> None:
    """A file of version 0.1.0 with a section `distillation` is told where its fields are."""
    path.write_text("env: {}\ndistillation:\n  teachers: [runs/a]")
    expected = ":2: distillation: is no section any more; its fields are now in algorithm, with "
    assert message(path) == f"{path}{expected}algorithm.name = distillation"


def test_an_override_within_a_section_of_a_section(path: Path) -> None:
    """One number of a randomization can be set, and the others stay."""
    path.write_text("randomization:\n  friction: {low: 0.7, high: 1.2, names: foot*}")
    friction = load_config(path, ["randomization.friction.low=0.5"]).randomization.friction
    assert friction is not None
    assert (friction.low, friction.high, friction.names) == (0.5, 1.2, "foot*")
    ends = ["randomization.initial_state.position.low=-1", "randomization.initial_state.position.high=1"]
    start = load_config(path, ends).randomization.initial_state
    assert start is not None
    assert start.position is not None
    assert (start.position.low, start.position.high) == (-1.0, 1.0)


def test_task_parameters_merge_name_by_name(tmp_path: Path, path: Path) -> None:
    """A file adds to the parameters that it inherits, and the command line to those of the file."""
    (tmp_path / "base.yaml").write_text("env: {task: {a: 1.0, b: 2.0, c: 3.0}}")
    path.write_text("base: base.yaml\nenv:\n  task:\n    b: 20.0\n    c: 30.0")
    cfg, sources = load_with_sources(path, ["env.task.c=300", "env.task.d=400"])
    assert cfg.env.task == {"a": 1.0, "b": 20.0, "c": 300.0, "d": 400.0}
    assert sources["env.task.a"] == f"{tmp_path / 'base.yaml'}:1"
    assert sources["env.task.b"] == f"{path}:4"
    assert sources["env.task.c"] == "command line"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("randomization.friction.lo=1", "randomization.friction.lo = 1: unknown field"),
        ("randomization.friction.low=a", "randomization.friction.low = 'a': must be a number"),
        ("randomization.friction.low=3", "randomization.friction.low = 3.0: must be less than high = 1.2"),
        ("env.task.x=a", "env.task.x = 'a': must be a number"),
        ("env.taks.x=1", "env.taks = 1: unknown field; did you mean env.task?"),
        ("env.num_envs.x=1", "env.num_envs.x = 1: unknown field"),
        ("network.hidden_sizes.0=1", "network.hidden_sizes.0 = 1: unknown field"),
    ],
)
def test_mistakes_within_are_named(path: Path, override: str, expected: str) -> None:
    """A mistake in one entry names that entry and where it came from."""
    path.write_text("randomization:\n  friction: {low: 0.7, high: 1.2}")
    assert message(path, override).startswith(f"command line: {expected}")


@pytest.mark.parametrize(
    ("field", "source"),
    [
        ("env.task.speed_m_s", "a.yaml:3"),
        ("env.task.other", "a.yaml:2"),
        ("env.name", "command line"),
        ("env.num_envs", "fallback.yaml"),
    ],
)
def test_errors_of_lower_layers_say_where_the_value_came_from(field: str, source: str) -> None:
    """A SettingError gets the file and line of its field, or of the nearest that holds it."""
    sources = {"env.task.speed_m_s": "a.yaml:3", "env.task": "a.yaml:2", "env.name": "command line"}
    with pytest.raises(ConfigError) as caught, explain_settings(sources, "fallback.yaml"):
        raise SettingError(field, 7, "is too much", "set it to 6")
    assert str(caught.value) == f"{source}: {field} = 7: is too much; set it to 6"
    assert caught.value.exit_code == 2


def test_other_errors_pass_as_they_are() -> None:
    """Only errors of settings are translated."""
    with pytest.raises(ZeroDivisionError), explain_settings({}, "a.yaml"):
        raise ZeroDivisionError
