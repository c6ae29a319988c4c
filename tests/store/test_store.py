"""A store keeps what was acknowledged, gives it back bit for bit, and finds what is similar."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from pi_incubator.cli.store import main
from pi_incubator.config.dataset_address import StoreAddress, absolute, parse_address
from pi_incubator.data.datasets.layout import (
    DatasetError,
    Episode,
    Group,
    Manifest,
    read_episodes,
    read_manifest,
    write_dataset,
)
from pi_incubator.data.datasets.source import fingerprint_of, read_source
from pi_incubator.errors import UserError

store_module = pytest.importorskip("pi_incubator.data.store.store", reason="needs LanceDB")
from pi_incubator.data.store.columns import Origin, tables_of  # noqa: E402

D, CRITIC, A = 5, 7, 2
MANIFEST = Manifest(
    env="toy",
    observations={"policy": Group((D,), "float32"), "critic": Group((CRITIC,), "float32")},
    action_low=(-1.0,) * A,
    action_high=(1.0,) * A,
    control_hz=50.0,
    max_episode_steps=20,
    joint_names=("hip", "knee"),
)
ORIGIN = Origin("training", "a", "c" * 64)


def make_episode(length, seed, terminated=True):
    random = np.random.default_rng(seed)
    ends = np.arange(length) == length - 1
    return Episode(
        {
            name: random.normal(size=(length + 1, *group.shape)).astype(np.float32)
            for name, group in MANIFEST.observations.items()
        },
        random.uniform(-1, 1, (length, A)).astype(np.float32),
        random.normal(size=length).astype(np.float32),
        ends & terminated,
        ends & (not terminated),
        random.random(length) > 0.1,
    )


EPISODES = [make_episode(length, seed) for seed, length in enumerate((1, 20, 7, 13))]


@pytest.fixture
def store(tmp_path):
    made = store_module.create_store(str(tmp_path / "store"), MANIFEST, EPISODES)
    made.append(EPISODES, ORIGIN)
    return made


def assert_same_episodes(found, expected):
    found = sorted(found, key=lambda episode: episode.reward.tobytes())
    expected = sorted(expected, key=lambda episode: episode.reward.tobytes())
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for group, rows in theirs.observations.items():
            np.testing.assert_array_equal(ours.observations[group], rows)
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


def test_episodes_come_back_bit_for_bit(store):
    again = store_module.open_store(store.path)
    assert again.manifest == MANIFEST
    assert again.about == store.about
    assert_same_episodes(again.episodes(), EPISODES)
    assert again.num_steps() == sum(len(episode.reward) for episode in EPISODES)


def test_episodes_are_filtered_by_what_is_known_of_them(store):
    store.append([make_episode(5, 9, terminated=False)], Origin("robot", "walk.parquet"))
    assert [len(episode.reward) for episode in store.episodes("source = 'robot'")] == [5]
    best = max(float(episode.reward.sum(dtype=np.float64)) for episode in EPISODES)
    (found,) = store.episodes(f"\"return\" > {best - 1e-3} AND run = 'a'")
    assert float(found.reward.sum(dtype=np.float64)) == pytest.approx(best)


def test_neighbours_are_those_of_brute_force(store):
    """Before there is an index, and through it, within some of the steps."""
    episodes = [make_episode(1000, 100 + seed) for seed in range(12)]
    store.append(episodes, ORIGIN)
    every = [*EPISODES, *episodes]
    observed = np.concatenate([episode.observations["policy"][:-1] for episode in every])
    to_go = np.concatenate([episode.reward[::-1].cumsum()[::-1] for episode in every])
    query = observed[3] + 0.1
    distance = np.linalg.norm(store.about.embed(observed) - store.about.embed(query), axis=-1)
    nearest = np.argsort(distance)[:10]
    found = store.retrieve(query, 10, columns=("return_to_go", "action"))
    np.testing.assert_allclose(found.distance, distance[nearest], rtol=1e-4)
    np.testing.assert_allclose(found.columns["return_to_go"], to_go[nearest], rtol=1e-4, atol=1e-4)
    assert found.columns["action"].shape == (10, A)
    store.compact()
    indexed = store.retrieve(query, 10)
    assert len(set(indexed.columns["return_to_go"]) & set(found.columns["return_to_go"])) >= 9
    good = store.retrieve(query, 10, where="return_to_go > 5")
    expected = np.sort(distance[to_go > 5])[:10]
    np.testing.assert_allclose(good.distance, expected, rtol=1e-3)
    assert_same_episodes(store.episodes(), every)


def test_an_embedding_is_the_normalized_observation(store):
    seen = np.concatenate([episode.observations["policy"] for episode in EPISODES])
    embedded = store.about.embed(seen)
    np.testing.assert_allclose(embedded.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(embedded.std(0), 1.0, atol=1e-6)


def test_compacting_changes_no_fingerprint_and_another_episode_does(store):
    before = store.fingerprint()
    store.compact()
    assert store_module.open_store(store.path).fingerprint() == before
    store.append([make_episode(3, 50)], ORIGIN)
    assert store.fingerprint() != before
    address = StoreAddress(store.path, "length > 10")
    assert fingerprint_of(address) == store.fingerprint("length > 10")


def test_two_writers_and_two_readers_at_once(tmp_path):
    """Nothing is lost or doubled, and a reader never sees half an episode."""
    path = str(tmp_path / "store")
    written = [[make_episode(6, 100 * writer + number) for number in range(8)] for writer in range(2)]
    problems, done = [], threading.Event()

    def write(episodes):
        own = store_module.create_store(path, MANIFEST, EPISODES)
        for episode in episodes:
            own.append([episode], ORIGIN)

    def read():
        own = store_module.create_store(path, MANIFEST, EPISODES)
        while not done.is_set():
            problems.extend(len(one.reward) for one in own.episodes() if len(one.reward) != 6)

    writers = [threading.Thread(target=write, args=(episodes,)) for episodes in written]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not problems
    assert_same_episodes(store_module.open_store(path).episodes(), [one for each in written for one in each])


def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path):
    path = str(tmp_path / "store")
    store_module.create_store(path, MANIFEST, EPISODES)
    program = (
        "import sys; from tests.store.test_store import *\n"
        f"store = store_module.open_store({path!r})\n"
        "for seed in range(10_000):\n"
        "    store.append([make_episode(15, seed)], ORIGIN); print(seed, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    acknowledged = [int(writer.stdout.readline()) for _ in range(5)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout]
    writer.wait()
    writer.stdout.close()
    found = list(store_module.open_store(path).episodes())
    assert len(found) - len(acknowledged) in (0, 1)  # written, and killed before it could say so
    expected = [make_episode(15, seed) for seed in range(len(found))]
    assert_same_episodes(found, expected)


def test_steps_of_no_episode_are_not_found(store):
    """What a killed writer leaves is in no answer."""
    stray = make_episode(5, 77)
    frames, _ = tables_of(store.about, [stray], ORIGIN)
    store._frames.add(frames)
    query = stray.observations["policy"][2]
    assert store.retrieve(query, 1).distance[0] > 0.1
    every = sum(len(episode.reward) for episode in EPISODES)
    assert len(store.retrieve(query, 1000).distance) == every


@pytest.mark.parametrize(
    ("observations", "problem"),
    [
        ({"pixels": Group((1, 4, 4), "uint8")}, "keeps vectors, and the group 'pixels' is uint8"),
        ({"policy": Group((D,), "float32"), "state": Group((D,), "float32")}, "two groups in the column"),
    ],
)
def test_what_a_store_cannot_keep_is_refused(tmp_path, observations, problem):
    manifest = replace(MANIFEST, observations=observations)
    with pytest.raises(DatasetError, match=problem):
        store_module.create_store(str(tmp_path / "new"), manifest, EPISODES)


def test_a_store_of_another_task_is_refused(store):
    for manifest in (replace(MANIFEST, env="other"), replace(MANIFEST, control_hz=25.0)):
        with pytest.raises(DatasetError, match=r"has steps of toy: its (env|control_hz) is"):
            store_module.create_store(store.path, manifest, EPISODES)
    store_module.create_store(store.path, replace(MANIFEST, control_hz=50.0 * (1 + 1e-9)), EPISODES)
    assert_same_episodes(store.episodes(), EPISODES)


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (lambda store: store_module.open_store(store.path + "x"), "is not there"),
        (lambda store: store_module.open_store(os.path.dirname(store.path)), "is not a store"),
        (lambda store: list(store.episodes("retrun > 1")), "the query is refused"),
        (lambda store: store.retrieve(np.zeros(D + 1), 3), "of width 5 is searched for"),
        (lambda store: store.retrieve(np.zeros(D), 3, where="x >"), "the query is refused"),
        (lambda store: store.like(1, 2, 3), "has no step 1:2"),
    ],
    ids=[
        "nothing there",
        "something else",
        "unknown column",
        "another width",
        "no condition",
        "no such step",
    ],
)
def test_mistakes_are_one_line(store, act, problem):
    with pytest.raises(UserError, match=problem) as caught:
        act(store)
    assert len(str(caught.value).splitlines()) == 1


def test_addresses():
    assert parse_address("data/x") is None
    assert parse_address("store:s3://b/x") == ("s3://b/x", None)
    address = parse_address("store:data/x?where=return > 3 AND run = 'a?b'")
    assert address == ("data/x", "return > 3 AND run = 'a?b'")
    assert absolute(str(address)) == f"store:{os.getcwd()}/data/x?where=return > 3 AND run = 'a?b'"
    assert absolute("store:s3://b/x") == "store:s3://b/x"


def test_the_command_imports_lists_searches_and_exports(tmp_path, capsys):
    dataset, path = tmp_path / "dataset", str(tmp_path / "store")
    write_dataset(MANIFEST, EPISODES, dataset, "a-0", dataset)
    main(["import", str(dataset), "--to", path, "--run", "first"])
    assert "41 steps in 4 episodes added" in capsys.readouterr().out
    with pytest.raises(UserError, match="has 4 episodes of training 'first' already"):
        main(["import", str(dataset), "--to", path, "--run", "first"])
    main(["info", path, "--where", "length > 10"])
    assert "33 steps in 2 episodes" in capsys.readouterr().out
    main(["ls", path])
    number = str(store_module.open_store(path).rows("length = 20")["episode"][0])
    assert number in capsys.readouterr().out
    main(["search", path, "--like", f"{number}:4", "-k", "3"])
    assert f"{number}:4" in capsys.readouterr().out
    main(["compact", path])
    main(["export", path, "--where", "length > 10", "--to", str(tmp_path / "long")])
    manifest = read_manifest(tmp_path / "long")
    assert manifest == MANIFEST
    long = [episode for episode in EPISODES if len(episode.reward) > 10]
    assert_same_episodes(read_episodes(tmp_path / "long", manifest), long)
    _, episodes = read_source(f"store:{path}?where=length > 10")
    assert_same_episodes(episodes, long)


def test_an_export_is_as_lerobots_reader_wants_it(tmp_path, store):
    """Its checks, by its own calls: episodes tile the rows, row N is step N, names without dots."""
    import json

    import lancedb
    import pandas as pd
    from lancedb.permutation import Permutation

    folder = tmp_path / "exported"
    main(["export", store.path, "--format", "lerobot", "--to", str(folder)])
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["storage_format"]) == ("v3.0", "lance")
    about = pd.read_parquet(folder / "meta/episodes/chunk-000/file-000.parquet")
    starts, stops = about["dataset_from_index"].to_numpy(), about["dataset_to_index"].to_numpy()
    table = lancedb.connect(folder).open_table("frames")
    assert (starts[0], stops[-1]) == (0, info["total_frames"])
    assert table.count_rows() == info["total_frames"]
    np.testing.assert_array_equal(starts[1:], stops[:-1])
    names = [name.replace(".", "_") for name in info["features"]]
    rows = [0, 5, info["total_frames"] - 1]
    batch = Permutation.identity(table).select_columns(names).with_format("arrow").__getitems__(rows)
    assert batch.column("index").to_pylist() == rows
    assert batch.column("observation_state").type.list_size == D
    first = next(iter(store.episodes()))
    found = batch.column("observation_state").to_pylist()[0]
    np.testing.assert_array_equal(np.float32(found), first.observations["policy"][0])
