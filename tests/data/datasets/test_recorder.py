"""Recorded steps are those that the worlds took, episode by episode, also where a run continues."""

import numpy as np
import pytest
import torch

from envs_gpu.errors import SettingError
from envs_gpu.make import make_env
from envs_gpu.vec_env import EnvSpec
from pi_incubator.data.datasets import recorder as module
from pi_incubator.data.datasets.layout import (
    DatasetError,
    manifest_of,
    read_episodes,
    read_manifest,
    read_shard,
    shards_of,
)
from pi_incubator.data.datasets.recorder import Recorder, recorded
from pi_incubator.errors import UserError
from tests.off_policy import SPEC
from tests.offline import make_episode, write_dataset

NUM_WORLDS, EPISODE_STEPS = 3, 7


@pytest.fixture
def make_worlds():
    made = []

    def make():
        env = make_env(
            "cartpole_balance",
            backend="mujoco",
            num_envs=NUM_WORLDS,
            device=torch.device("cpu"),
            seed=1,
            episode_length_s=EPISODE_STEPS * 0.01,
        )
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


def actions(count):
    """Some are beyond the limits."""
    return 3.0 * torch.randn(count, NUM_WORLDS, 1, generator=torch.Generator().manual_seed(0))


def watch(env, count):
    """`(obs, action within the limits, reward, done, final_obs)` of each step, as numpy."""
    seen = []
    for action in actions(count):
        obs = env.obs["policy"].clone().numpy()
        result = env.step(action)
        done = (result.terminated | result.truncated).numpy().copy()
        final = result.final_obs["policy"].clone().numpy()
        seen.append((obs, action.clamp(-1, 1).numpy(), result.reward.numpy().copy(), done, final))
    return seen


def expected_episodes(seen):
    """Observations `[T + 1, D]`, actions and rewards of each world's episodes, world by world."""
    for world in range(NUM_WORLDS):
        start = 0
        for stop in range(1, len(seen) + 1):
            if seen[stop - 1][3][world] or stop == len(seen):
                steps = seen[start:stop]
                observations = [step[0][world] for step in steps] + [steps[-1][4][world]]
                yield np.stack(observations), [s[1][world] for s in steps], [s[2][world] for s in steps]
                start = stop


@pytest.mark.parametrize("steps_of_shard", [1, 4 * NUM_WORLDS, 1000])
def test_episodes_are_those_that_the_worlds_ran(make_worlds, tmp_path, monkeypatch, steps_of_shard):
    """However many shards an episode is in: bit for bit, with actions as the worlds clip them."""
    monkeypatch.setattr(module, "STEPS_OF_SHARD", steps_of_shard)
    env = make_worlds()
    recorder = Recorder(tmp_path / "data", "run-0", env.spec)
    seen = watch(recorded(env, recorder), 17)
    recorder.flush()
    manifest = read_manifest(tmp_path / "data")
    assert manifest == manifest_of(env.spec)
    found = list(read_episodes(tmp_path / "data", manifest))
    expected = list(expected_episodes(seen))
    assert len(found) == len(expected) == 3 * NUM_WORLDS
    assert sum(episode.is_complete for episode in found) == 2 * NUM_WORLDS
    for observations, action, reward in expected:
        (same,) = (e for e in found if np.array_equal(e.observations["policy"], observations))
        assert np.array_equal(same.action, np.stack(action))
        assert np.array_equal(same.reward, np.stack(reward))
        assert same.valid.all()


def test_a_continued_recording_equals_an_uninterrupted_one(make_worlds, tmp_path):
    """Shards that were written after the checkpoint are replaced."""
    episodes = {}
    for name in ("whole", "halves"):
        env = make_worlds()
        env = recorded(env, Recorder(tmp_path / name, "run-0", env.spec))
        every = list(actions(17))
        for action in every[:10]:
            env.step(action)
        state = {key: value.clone() for key, value in env.state_dict().items()}
        if name == "halves":
            env.step(every[0])
            env.state_dict()  # writes what is not part of the continued run
            again = make_worlds()
            env = recorded(again, Recorder(tmp_path / name, "run-0", again.spec, continues=True))
            env.load_state_dict(state)
        for action in every[10:]:
            env.step(action)
        env.state_dict()
        episodes[name] = list(read_episodes(tmp_path / name, read_manifest(tmp_path / name)))
    assert len(episodes["whole"]) == len(episodes["halves"]) == 3 * NUM_WORLDS
    for one, other in zip(*episodes.values(), strict=True):
        assert np.array_equal(one.observations["policy"], other.observations["policy"])
        assert all(np.array_equal(*pair) for pair in zip(one[1:], other[1:], strict=True))


def test_a_reset_ends_episodes_that_stay_incomplete(make_worlds, tmp_path):
    env = make_worlds()
    recorder = Recorder(tmp_path / "data", "run-0", env.spec)
    env = recorded(env, recorder)
    for seed in (1, 2):
        env.reset(seed)
        env.step(actions(1)[0])
    recorder.flush()
    found = list(read_episodes(tmp_path / "data", read_manifest(tmp_path / "data")))
    assert [len(episode.reward) for episode in found] == [1] * (2 * NUM_WORLDS)
    assert not any(episode.is_complete for episode in found)


def test_a_world_that_becomes_a_copy_begins_another_episode(make_worlds, tmp_path):
    """No recorded step leads from one world's state to that of another."""
    env = make_worlds()
    recorder = Recorder(tmp_path / "data", "run-0", env.spec)
    env = recorded(env, recorder)
    before = [env.step(action).final_obs["policy"].clone() for action in actions(3)][-1]
    env.copy_worlds(torch.zeros(NUM_WORLDS, dtype=torch.int64))
    env.step(actions(1)[0])
    recorder.flush()
    found = list(read_episodes(tmp_path / "data", read_manifest(tmp_path / "data")))
    assert sorted(len(episode.reward) for episode in found) == [1] * NUM_WORLDS + [3] * NUM_WORLDS
    ends = [episode.observations["policy"][-1] for episode in found if len(episode.reward) == 3]
    assert np.array_equal(np.stack(ends), before.numpy())


def test_a_missing_shard_is_not_skipped(make_worlds, tmp_path):
    env = make_worlds()
    recorder = Recorder(tmp_path / "data", "run-0", env.spec)
    env = recorded(env, recorder)
    for action in actions(3):
        env.step(action)
        recorder.flush()
    shards_of(tmp_path / "data")[1].unlink()
    with pytest.raises(DatasetError, match="shard 1 of 'run-0' is missing before it"):
        list(read_episodes(tmp_path / "data", read_manifest(tmp_path / "data")))


def test_a_shard_that_is_there_is_never_replaced(make_worlds, tmp_path):
    """Two runs of one name that began together write the same names."""
    env, folder = make_worlds(), tmp_path / "data"
    first, second = Recorder(folder, "run-0", env.spec), Recorder(folder, "run-0", env.spec)
    for recorder in (first, second):
        recorded(env, recorder).step(actions(1)[0])
    first.flush()
    (shard,) = shards_of(folder)
    kept = shard.read_bytes()
    with pytest.raises(UserError, match="cannot be written"):
        second.flush()
    assert shard.read_bytes() == kept


def test_runs_add_to_a_dataset_of_the_same_worlds_alone(make_worlds, tmp_path):
    env, folder = make_worlds(), tmp_path / "data"
    for writer in ("one-0", "other-0"):
        recorder = Recorder(folder, writer, env.spec)
        recorded(env, recorder).step(actions(1)[0])
        recorder.flush()
    assert [path.name for path in shards_of(folder)] == [
        "one-0-000000.safetensors",
        "other-0-000000.safetensors",
    ]
    with pytest.raises(SettingError, match=r"training.record = .*has steps of 'one' already"):
        Recorder(folder, "one-0", env.spec)
    faster = EnvSpec(**(vars(env.spec) | {"control_hz": 7.0}))
    with pytest.raises(SettingError, match=r"has steps of other worlds \(see its manifest.json\)"):
        Recorder(folder, "third-0", faster)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(SettingError, match="is there, and is no dataset"):
        Recorder(tmp_path / "notes", "one-0", env.spec)


def test_a_shard_is_written_when_it_holds_its_bytes(make_worlds, tmp_path, monkeypatch):
    """So that pictures do not fill the memory until a checkpoint."""
    env = make_worlds()
    # Observations before and after, action and reward in float32; three flags.
    bytes_of_step = 4 * (2 * env.spec.obs_dims["policy"] + 2) + 3
    assert module.bytes_per_step(env.spec) == bytes_of_step
    monkeypatch.setattr(module, "BYTES_OF_SHARD", 2 * NUM_WORLDS * bytes_of_step)
    env = recorded(env, Recorder(tmp_path / "data", "run-0", env.spec))
    for num_shards, action in zip((0, 1, 1, 2), actions(4), strict=True):
        env.step(action)
        assert len(shards_of(tmp_path / "data")) == num_shards


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    """The check runs before training, not when the first shard is written; the message names the path."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingError, match=r"training.record = .*cannot be written \(.*file is no folder\)"):
        Recorder(tmp_path / "file" / "data", "run-0", SPEC)
    with pytest.raises(SettingError, match=r"cannot be written .*too long"):
        Recorder(tmp_path / ("x" * 300), "run-0", SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_damaged_is_refused_in_one_line(tmp_path):
    folder = write_dataset(tmp_path / "data", [make_episode(5)])
    manifest, (shard,) = read_manifest(folder), shards_of(folder)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(DatasetError, match="is no whole safetensors file") as caught:
        read_shard(shard, manifest)
    assert len(str(caught.value).splitlines()) == 1
    shard.write_bytes(whole)
    wider = EnvSpec(**(vars(SPEC) | {"obs_dims": {"policy": 4}}))
    with pytest.raises(DatasetError, match=r"has 'obs.policy' of float32 \[5, 3\], and manifest.json says"):
        read_shard(shard, manifest_of(wider))
    (folder / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(DatasetError, match="is damaged"):
        read_manifest(folder)
    with pytest.raises(DatasetError, match="is no dataset"):
        read_manifest(tmp_path)
