"""`pi_incubator.run` is the Python entry: it trains, judges, and calls hooks in a fixed order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pi_incubator
from pi_incubator.config import ConfigError
from pi_incubator.errors import UserError
from pi_incubator.hooks.hook import Hook

CONFIG = Path(__file__).parents[1] / "configs" / "ppo" / "cartpole_balance.yaml"
SETTINGS = (
    *("env.num_envs=8", "algorithm.horizon=4", "algorithm.minibatch_size=16", "algorithm.num_epochs=1"),
    *("training.log_every=1", "checkpoint.save_every=1", "tracking.backend=none", "compute.compile=off"),
    *(
        "evaluation.num_episodes=1",
        "evaluation.video=false",
        "deployment.export=none",
        "evaluation.curve=false",
        "experiment.name=run",
    ),
    "compute.device=cpu",
)


class Counter(Hook):
    """Counts its calls, and notes what is on disk at each."""

    def __init__(self, folder):
        self.folder, self.count, self.seen = folder, torch.tensor(0), []

    def due(self, progress):
        return progress.iteration % 2 == 1

    def __call__(self, progress):
        self.count += 1
        logged = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        saved = (int(path.name[5:]) for path in (self.folder / "checkpoints").glob("iter_*"))
        is_saved = progress.iteration in saved
        self.seen.append((progress.iteration, progress.env_steps, logged[-1]["iteration"], is_saved))

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Silent(Hook):
    """A hook without state, called before `Counter`."""

    def __init__(self, calls):
        self.calls = calls

    def due(self, progress):
        return True

    def __call__(self, progress):
        self.calls.append(progress.is_last)


def train(folder, total_steps, *hooks):
    place = (f"experiment.output_dir={folder.parent}", f"training.total_steps={total_steps}")
    return pi_incubator.run(CONFIG, [*SETTINGS, *place], hooks=hooks)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four iterations, its result, and its hooks."""
    folder, calls = tmp_path_factory.mktemp("runs") / "run", []
    counter = Counter(folder)
    return train(folder, 4 * 32, Silent(calls), counter), counter, calls


def test_the_result_has_settings_folder_and_evaluation(finished):
    """A notebook needs nothing else to go on."""
    result, _, _ = finished
    assert isinstance(result, pi_incubator.RunResult)
    assert (result.cfg.env.num_envs, result.cfg.training.total_steps) == (8, 128)
    assert (result.folder / "config.yaml").is_file()
    assert result.evaluation.num_episodes == 1
    written = json.loads((result.folder / "evaluation.json").read_text())
    assert written["return"]["mean"] == result.evaluation.summary()["return"]["mean"]


def test_hooks_come_after_logging_and_before_the_checkpoint(finished):
    """At its call a hook finds the iteration logged, and the checkpoint of the one before."""
    _, counter, calls = finished
    assert counter.seen == [(1, 64, 1, False), (3, 128, 3, False)]
    assert calls == [False, False, False, True]


def test_a_hook_with_state_is_saved_and_continues(finished):
    """The name of its part is that of its class; one without state has no file."""
    result, counter, _ = finished
    newest = max(result.folder.glob("checkpoints/iter_*"))
    assert load_file(newest / "hook_Counter.safetensors")["count"] == counter.count == 2
    assert not (newest / "hook_Silent.safetensors").exists()
    again, calls = Counter(result.folder), []
    train(result.folder, 6 * 32, Silent(calls), again)
    assert again.count == 3
    assert [iteration for iteration, *_ in again.seen] == [5]
    assert calls == [False, True]


def test_a_hook_that_the_checkpoint_does_not_know_starts_anew(tmp_path, caplog):
    """A run may be continued with more hooks than it had."""
    train(tmp_path / "run", 2 * 32, Silent([]))
    counter = Counter(tmp_path / "run")
    train(tmp_path / "run", 4 * 32, counter)
    assert counter.count == 1
    assert "hook_Counter.safetensors is not in this checkpoint; it starts anew" in caplog.text


class Harder(Hook):
    """A curriculum: a task parameter that rises with the iterations."""

    def due(self, progress):
        return True

    def __call__(self, progress):
        margin = 1.0 + progress.iteration
        progress.algorithm.env.set_parameters(None, {"velocity_margin_rad_s": margin})


def test_a_hook_may_change_the_task(tmp_path):
    """A curriculum is a hook; what it set is part of the checkpoint that follows."""
    result = train(tmp_path / "run", 3 * 32, Harder())
    newest = max(result.folder.glob("checkpoints/iter_*"))
    assert load_file(newest / "env.safetensors")["parameters.velocity_margin_rad_s"].tolist() == [3.0] * 8


def test_a_mistake_is_an_error_before_anything_is_written(tmp_path):
    """The Python entry raises what the command prints."""
    with pytest.raises(ConfigError, match=r"command line: env\.name = 'cartpole': unknown task"):
        pi_incubator.run(CONFIG, [f"experiment.output_dir={tmp_path}", "env.name=cartpole"])
    assert not list(tmp_path.iterdir())


def test_a_failed_start_or_resume_leaves_the_run_as_it_was(tmp_path):
    """Nothing is changed where a store does not answer or the settings do not fit the checkpoint."""
    result = train(tmp_path / "run", 32)
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
    del before[result.folder / ".lock"]
    away = ("tracking.backend=mlflow", "tracking.uri=sqlite:////nowhere/x.db")
    place = (f"experiment.output_dir={tmp_path}", "training.total_steps=64", "training.log_every=7")
    for mistake in (away, (*away, "checkpoint.resume=never"), ("env.backend=warp",)):
        with pytest.raises((ConfigError, UserError)):
            pi_incubator.run(CONFIG, [*SETTINGS, *place, *mistake])
        after = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
        del after[result.folder / ".lock"]
        assert after == before, mistake


def test_a_setting_that_does_not_fit_the_run_names_where_it_came_from(tmp_path):
    """The command line, or the line of the file that was named: never the saved settings of the run."""
    folder = train(tmp_path / "run", 32).folder
    place = (f"experiment.output_dir={tmp_path}", "experiment.name=run")
    with pytest.raises(ConfigError) as caught:
        pi_incubator.run(CONFIG, [*SETTINGS, *place, "algorithm.gamma=0.5"])
    expected = f"command line: algorithm.gamma = 0.5: the run to be continued, {folder}, has "
    assert str(caught.value).startswith(expected)
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: {CONFIG}\nalgorithm:\n  gamma: 0.5\n")
    with pytest.raises(ConfigError) as caught:
        pi_incubator.run(mine, [*SETTINGS, *place])
    assert str(caught.value).startswith(f"{mine}:3: algorithm.gamma = 0.5: the run to be continued, ")
    away = ("tracking.backend=mlflow", "tracking.uri=foo://bar", "experiment.name=new")
    with pytest.raises(ConfigError) as caught:
        pi_incubator.run(CONFIG, [*SETTINGS, *place, *away])
    assert str(caught.value).startswith("command line: tracking.uri = 'foo://bar': cannot be opened")
    with pytest.raises(ConfigError) as caught:
        pi_incubator.run(CONFIG, [*SETTINGS, *place, "experiment.name=none", "checkpoint.resume=must"])
    assert str(caught.value).startswith(
        "command line: checkpoint.resume = 'must': there is no checkpoint in "
    )


def test_a_renamed_run_continues_where_it_is(tmp_path):
    """By its new name, or by its own settings."""
    result = train(tmp_path / "runs" / "run", 32)
    there = (tmp_path / "runs").rename(tmp_path / "archive") / "gait_v1"
    (there.parent / "run").rename(there)
    place = (f"experiment.output_dir={there.parent}", "experiment.name=gait_v1", "training.total_steps=64")
    pi_incubator.run(CONFIG, [*SETTINGS, *place])
    again = pi_incubator.run(there / "config.yaml", ["training.total_steps=96"])
    assert again.folder == there
    assert sorted(path.name for path in there.glob("checkpoints/iter_*")) == [
        *("iter_00000000", "iter_00000001", "iter_00000002")
    ]
    assert not result.folder.exists()
    assert not (tmp_path / "runs").exists()


IN_A_NEW_PROCESS = """
import sys
import pi_incubator as pi
assert not {"torch", "pydantic", "pi_incubator.run"} & sys.modules.keys()
first, second = pi.run, pi.run
import pi_incubator.run
from pi_incubator import run as third
from pi_incubator.run import RunResult, run as fourth
assert first is second is third is fourth is pi.run
assert pi.RunResult is RunResult and "torch" not in sys.modules
"""


def test_the_entry_is_imported_at_first_use_and_stays_a_function():
    """`import pi_incubator` is light; the module of the same name does not replace `run`."""
    done = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
