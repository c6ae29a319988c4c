"""The randomization section: what it refuses, and that it says what the env does."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs_gpu.draw import Draw
from envs_gpu.randomize import Delay, Randomization
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.config.models import RandomizationSection
from pi_incubator.envs import randomization_of

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("friction={low: 2, high: 1}", "friction.low = 2.0: must be less than high = 1"),
        ("friction={low: 1, high: 1}", "friction.low = 1.0: must be less than high = 1"),
        ("friction=3", "friction = 3: must be a mapping of fields"),
        ("friction={low: 0, high: 1}", "friction.low = 0.0: a factor must be positive"),
        (
            "gravity={distribution: log_uniform, low: -1, high: 1}",
            "gravity.low = -1.0: log_uniform needs positive numbers",
        ),
        ("mass={low: 1}", "mass.high = null: uniform is given by low and high; set high to a number"),
        ("mass={low: 1, high: 2, std: 1}", "mass.std = 1.0: uniform is given by low and high; remove std"),
        ("mass={distribution: normal, mean: 1, std: 0}", "mass.std = 0: must be greater than 0"),
        ("mass={distribution: normal, mean: 1, std: 0.3}", "mass.std = 0.3: a factor must be positive"),
        ("mass={distribution: gauss, mean: 1, std: 0.1}", "mass.distribution = 'gauss': must be"),
        ("mass={low: 1, high: 2, name: a}", "mass.name = 'a': unknown field"),
        ("mass={low: 1, high: 2, interval_s: 0}", "mass.interval_s = 0: must be greater than 0"),
        ("action_delay={low: 3, high: 2}", "action_delay.low = 3: must be at most high = 2"),
        ("action_delay={low: 1}", "action_delay.high: a field is missing; set it"),
        ("pushes={low: -1, high: 1}", "pushes.per = 'reset': a push comes within an episode"),
        ("initial_state={position: {low: 1}}", "initial_state.position.high = null: uniform is given"),
        ("frictoin={low: 1, high: 2}", "frictoin = {'high': 2, 'low': 1}: unknown field; did you mean"),
    ],
)
def test_mistakes_name_the_knob(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "ppo" / "go1_velocity.yaml", [f"randomization.{value}"])
    assert str(caught.value).startswith(f"command line: randomization.{message}")
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("randomization:\n  mass:\n    low: 2\n    high: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:3: randomization.mass.low = 2.0: must be less than")


def test_off_by_default() -> None:
    assert randomization_of(ExperimentConfig().randomization) == Randomization()


def test_the_env_gets_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "randomization:\n"
        "  mass: {distribution: normal, mean: 1, std: 0.1, per: interval, interval_s: 3, names: leg*}\n"
        "  friction: {low: 0.5, high: 1.5, shared: true}\n"
        "  action_delay: {high: 2}\n"
        "  initial_state: {velocity: {low: -1, high: 1}}\n"
    )
    assert randomization_of(load_config(path).randomization) == Randomization(
        mass=Draw("normal", mean=1.0, std=0.1, per="interval", interval_s=3.0, names="leg*"),
        friction=Draw(low=0.5, high=1.5, shared=True),
        action_delay=Delay(0, 2),
        initial_velocity=Draw(low=-1.0, high=1.0),
    )


def test_the_example_turns_every_knob() -> None:
    section = load_config(CONFIGS / "ppo" / "go1_velocity_randomized.yaml").randomization
    assert all(getattr(section, name) for name in RandomizationSection.model_fields)
