"""`pi-data info` and `pi-eval --record`: a trained policy's episodes become a dataset."""

import numpy as np
import pytest

from pi_incubator.cli import data as data_command
from pi_incubator.cli import eval as eval_command
from pi_incubator.config.packaged import CONFIGS
from pi_incubator.data.datasets.layout import read_episodes, read_manifest
from pi_incubator.errors import UserError
from pi_incubator.run import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    settings = [
        "env.num_envs=4",
        "algorithm.horizon=4",
        "algorithm.minibatch_size=16",
        "network.hidden_sizes=[8]",
    ]
    settings += ["training.total_steps=32", "tracking.backend=none", "evaluation.video=false"]
    settings += [
        "evaluation.num_episodes=2",
        "deployment.export=none",
        "evaluation.curve=false",
        "compute.compile=off",
    ]
    place = [f"experiment.output_dir={folder}", "experiment.name=balance"]
    return run(CONFIGS / "ppo" / "cartpole_balance.yaml", [*settings, *place])


def test_an_evaluation_is_recorded(trained, tmp_path, capsys):
    """The returns of the recorded episodes are those that the evaluation reports."""
    folder = tmp_path / "data"
    eval_command.main([str(trained.folder), "--record", str(folder)])
    manifest = read_manifest(folder)
    complete = [episode for episode in read_episodes(folder, manifest) if episode.is_complete]
    returns = [episode.reward.sum(dtype=np.float64) for episode in complete]
    assert sorted(returns) == pytest.approx(sorted(trained.evaluation.episodes["return"].tolist()), rel=1e-5)
    capsys.readouterr()
    data_command.main(["info", str(folder)])
    shown = capsys.readouterr().out
    assert "cartpole_balance at 100 Hz; observations policy [5]; action [1]" in shown
    assert "2,000 steps in 2 episodes, 2 of them complete" in shown


def test_what_is_no_dataset_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is no dataset \(it has no manifest.json\)"):
        data_command.main(["info", str(tmp_path)])
