"""Datasets go to the layouts of Minari and LeRobot and come back as they were."""

import json
from dataclasses import replace

import gymnasium
import h5py
import minari
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from minari.data_collector import EpisodeBuffer

from pi_incubator.cli import data as command
from pi_incubator.data.datasets import lerobot
from pi_incubator.data.datasets import minari as minari_layout
from pi_incubator.data.datasets.layout import (
    Group,
    Manifest,
    manifest_of,
    read_episodes,
    read_manifest,
    write_dataset,
)
from pi_incubator.errors import UserError
from tests.off_policy import HIGH, LOW, SPEC, A, D
from tests.offline import make_episode

MANIFEST = Manifest("toy", {"policy": Group((D,), "float32")}, LOW, HIGH, 50.0, 100, ("a", "b"))
ENDS = ("truncated", "terminated", None)


@pytest.fixture
def episodes():
    """Of 5, 1 and 3 steps; the last one is incomplete, and a step of the first one is not valid."""
    lengths = (5, 1, 3)
    found = [make_episode(lengths[seed], seed, ends) for seed, ends in enumerate(ENDS)]
    found[0].valid[2] = False
    return found


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.observations.keys() == other.observations.keys()
        for name, value in one.observations.items():
            assert np.array_equal(value, other.observations[name])
        for value, same in zip(one[1:], other[1:], strict=True):
            assert value.dtype == same.dtype
            assert np.array_equal(value, same)


@pytest.mark.parametrize("layout", command.FORMATS)
@pytest.mark.parametrize("groups", [("policy",), ("policy", "critic")])
def test_what_is_exported_comes_back_bit_for_bit(tmp_path, episodes, layout, groups, capsys):
    forms = {name: Group((D,), "float32") for name in groups}
    manifest = Manifest(**(vars(MANIFEST) | {"observations": forms}))
    several = [e._replace(observations=dict.fromkeys(groups, e.observations["policy"])) for e in episodes]
    write_dataset(manifest, several, tmp_path / "ours", "run-0", tmp_path)
    command.main(["export", str(tmp_path / "ours"), "--format", layout, "--to", str(tmp_path / "theirs")])
    command.main(["import", str(tmp_path / "theirs"), "--to", str(tmp_path / "back")])
    assert read_manifest(tmp_path / "back") == manifest
    assert_same(list(read_episodes(tmp_path / "back", manifest)), several)
    assert "9 steps in 3 episodes, 2 of them complete" in capsys.readouterr().out


@pytest.mark.parametrize("layout", command.FORMATS)
def test_vectors_of_one_number_come_back_bit_for_bit(tmp_path, layout):
    """LeRobot stores a feature of shape [1] as a column of numbers, not of lists."""
    spec = replace(SPEC, obs_dims={"policy": 1}, action_dim=1, action_low=(-1.0,), action_high=(1.0,))
    narrow = [make_episode(length, length, spec=spec) for length in (4, 1)]
    manifest = manifest_of(spec)
    write_dataset(manifest, narrow, tmp_path / "ours", "run-0", tmp_path)
    folder = tmp_path / "theirs"
    command.main(["export", str(tmp_path / "ours"), "--format", layout, "--to", str(folder)])
    command.main(["import", str(folder), "--to", str(tmp_path / "back")])
    assert_same(list(read_episodes(tmp_path / "back", manifest)), narrow)
    if layout == "lerobot":
        features = json.loads((folder / "meta/info.json").read_text())["features"]
        steps = pq.read_table(folder / "data/chunk-000/file-000.parquet")
        for name in ("observation.state", "action", "next.reward"):
            assert features[name]["shape"] == [1]
            assert str(steps.schema.field(name).type) == "float"


def test_minari_reads_what_we_write(tmp_path, episodes):
    write_dataset(MANIFEST, episodes, tmp_path / "ours", "run-0", tmp_path)
    command.main(["export", str(tmp_path / "ours"), "--format", "minari", "--to", str(tmp_path / "theirs")])
    dataset = minari.MinariDataset(tmp_path / "theirs" / "data")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 9)
    assert dataset.action_space == gymnasium.spaces.Box(np.float32(LOW), np.float32(HIGH))
    assert dataset.observation_space.shape == (D,)
    for ours, theirs in zip(episodes, dataset.iterate_episodes(), strict=True):
        assert np.array_equal(theirs.observations, ours.observations["policy"])
        assert np.array_equal(theirs.actions, ours.action)
        assert np.array_equal(theirs.rewards, ours.reward)
        assert np.array_equal(theirs.terminations, ours.terminated)
        assert np.array_equal(theirs.truncations, ours.truncated)


def test_we_read_what_minari_writes(tmp_path):
    """Of an env of Gymnasium; its numbers are float64, and become float32."""
    env = gymnasium.make("InvertedPendulum-v5")
    (tmp_path / "theirs").mkdir()
    storage = minari.dataset.minari_storage.MinariStorage.new(
        tmp_path / "theirs" / "data", env.observation_space, env.action_space, env_spec=env.spec
    )
    random = np.random.default_rng(0)
    rows = {"observations": random.normal(size=(4, 4)), "actions": random.uniform(-3, 3, (3, 1))}
    buffer = EpisodeBuffer(
        id=0,
        **{name: list(value) for name, value in rows.items()},
        rewards=[1.0, 1.0, 1.0],
        terminations=[False, False, True],
        truncations=[False] * 3,
    )
    storage.update_episodes([buffer])
    source = str(tmp_path / "theirs")
    with pytest.raises(UserError, match="does not say of which task of ours it is; name it with --env"):
        command.main(["import", source, "--to", str(tmp_path / "ours")])
    with pytest.raises(UserError, match=r"has observations .* half_cheetah has"):
        command.main(["import", source, "--to", str(tmp_path / "ours"), "--env", "half_cheetah"])
    assert not (tmp_path / "ours").exists()
    command.main(["import", source, "--to", str(tmp_path / "ours"), "--env", "inverted_pendulum"])
    (episode,) = read_episodes(tmp_path / "ours", read_manifest(tmp_path / "ours"))
    assert np.array_equal(episode.observations["policy"], rows["observations"].astype(np.float32))
    assert np.array_equal(episode.action, rows["actions"].astype(np.float32))
    assert episode.terminated.tolist() == [False, False, True]
    assert episode.valid.all()


def test_the_files_of_lerobot_are_those_of_its_version_3(tmp_path, episodes):
    """Features, indices, times, tasks and statistics, as LeRobotDataset v3.0 describes them."""
    write_dataset(MANIFEST, episodes, tmp_path / "ours", "run-0", tmp_path)
    folder = tmp_path / "theirs"
    command.main(["export", str(tmp_path / "ours"), "--format", "lerobot", "--to", str(folder)])
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 50, 9)
    assert info["features"]["action"] == {"dtype": "float32", "shape": [A], "names": ["a", "b"]}
    steps = pq.read_table(folder / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(steps.column_names) == set(info["features"])
    for name, feature in info["features"].items():
        (row,) = {np.shape(value) or (1,) for value in steps[name].to_pylist()}
        assert list(row) == feature["shape"]
    assert steps["frame_index"].to_pylist() == [0, 1, 2, 3, 4, 0, 0, 1, 2]
    assert steps["episode_index"].to_pylist() == [0] * 5 + [1] + [2] * 3
    assert steps["index"].to_pylist() == list(range(9))
    np.testing.assert_allclose(steps["timestamp"].to_numpy(), steps["frame_index"].to_numpy() / 50.0)
    about = pd.read_parquet(folder / "meta/episodes/chunk-000/file-000.parquet")
    assert about["length"].tolist() == [5, 1, 3]
    assert about["dataset_from_index"].tolist() == [0, 5, 6]
    assert about["dataset_to_index"].tolist() == [5, 6, 9]
    assert [list(tasks) for tasks in about["tasks"]] == [["toy"]] * 3
    assert pd.read_parquet(folder / "meta/tasks.parquet").loc["toy", "task_index"] == 0
    stats = json.loads((folder / "meta/stats.json").read_text())
    reward = np.concatenate([episode.reward for episode in episodes]).astype(np.float64)
    expected = {"min": reward.min(), "max": reward.max(), "mean": reward.mean(), "std": reward.std()}
    for name, value in expected.items():
        assert stats["next.reward"][name] == pytest.approx([value])
    assert stats["next.reward"]["count"] == [9]


def test_lerobots_own_datasets_end_an_observation_earlier(tmp_path, episodes):
    """They have no observation after the last step: that step is left out, and the episode is incomplete."""
    write_dataset(MANIFEST, episodes, tmp_path / "ours", "run-0", tmp_path)
    folder = tmp_path / "theirs"
    command.main(["export", str(tmp_path / "ours"), "--format", "lerobot", "--to", str(folder)])
    file = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(
        table.drop_columns([name for name in table.column_names if name.startswith("final/")]), file
    )
    found = list(lerobot.read(folder))
    assert [len(episode.reward) for episode in found] == [4, 2]
    assert not any(episode.is_complete for episode in found)
    assert np.array_equal(found[0].observations["policy"], episodes[0].observations["policy"][:-1])


def test_what_cannot_be_read_is_one_line(tmp_path, episodes):
    with pytest.raises(UserError, match="is no dataset of Minari or LeRobot v3"):
        command.main(["import", str(tmp_path), "--to", str(tmp_path / "ours")])
    write_dataset(MANIFEST, episodes, tmp_path / "ours", "run-0", tmp_path)
    with pytest.raises(UserError, match="is there already; name a new folder"):
        command.main(["export", str(tmp_path / "ours"), "--format", "minari", "--to", str(tmp_path / "ours")])
    command.main(["export", str(tmp_path / "ours"), "--format", "minari", "--to", str(tmp_path / "theirs")])
    with h5py.File(tmp_path / "theirs" / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
    with pytest.raises(UserError, match="is damaged") as caught:
        command.main(["import", str(tmp_path / "theirs"), "--to", str(tmp_path / "back")])
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("layout", command.FORMATS)
def test_a_source_with_numbers_that_are_not_finite_is_named(tmp_path, episodes, layout):
    """Not the file that would have been written, which is deleted."""
    episodes[0].reward[1] = np.nan
    {"minari": minari_layout, "lerobot": lerobot}[layout].write(MANIFEST, episodes, tmp_path / "theirs")
    with pytest.raises(UserError, match="'reward' holds numbers that are not finite") as caught:
        command.main(["import", str(tmp_path / "theirs"), "--to", str(tmp_path / "back")])
    assert str(caught.value).startswith(f"{tmp_path / 'theirs'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    "arguments", [["export", "--format", "minari"], ["export", "--format", "lerobot"], ["import"]]
)
def test_a_target_below_a_file_is_one_line(tmp_path, episodes, arguments):
    write_dataset(MANIFEST, episodes, tmp_path / "ours", "run-0", tmp_path)
    source = tmp_path / "ours"
    if arguments == ["import"]:
        source = tmp_path / "theirs"
        lerobot.write(MANIFEST, episodes, source)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/x: cannot be made \(Not a directory\); name another folder"):
        command.main([arguments[0], str(source), *arguments[1:], "--to", str(tmp_path / "file" / "x")])
