"""Sizes of off-policy algorithms that cannot work are refused before anything is simulated."""

from pathlib import Path

import pytest

from pi_incubator.config import ConfigError, load_config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["algorithm.learning_starts=100000"],
            "algorithm.learning_starts = 100000: nothing is learned in training.total_steps = 100000; "
            "set it below, or train for longer",
        ),
        (
            ["algorithm.updates_per_step=1e-6"],
            "algorithm.updates_per_step = 1e-06: makes no update in the 95000 steps after "
            "algorithm.learning_starts; raise it, or train for longer",
        ),
        (
            ["algorithm.batch_size=2000", "algorithm.buffer_size=1000"],
            "algorithm.buffer_size = 1000: must hold at least one minibatch and one step of every world; "
            "set it to 2000 or more",
        ),
        (
            ["algorithm.name=td3", "algorithm.exploration_std_min=0.2"],
            "algorithm.exploration_std_min = 0.2: is above algorithm.exploration_std = 0.1; "
            "set it to that or less",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, settings, expected) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("{env: {num_envs: 8}, algorithm: {name: sac}, training: {total_steps: 100000}}")
    load_config(path)
    with pytest.raises(ConfigError) as caught:
        load_config(path, settings)
    assert str(caught.value) == f"command line: {expected}"
