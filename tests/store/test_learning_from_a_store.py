"""Offline algorithms learn from a store what they learn from the same steps in a folder."""

import pytest
import torch

from pi_incubator.cli.store import main
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.inputs import check_unchanged, inputs_of, write_inputs
from pi_incubator.run_folder import RunFolder
from tests.learning import state_of
from tests.offline import make_episode, make_offline, write_dataset

store_module = pytest.importorskip("pi_incubator.data.store.store", reason="needs LanceDB")
IQL = {"name": "iql", "offline_updates": 6, "updates_per_iteration": 2}


@pytest.fixture
def places(tmp_path):
    """A dataset folder, and a store with its episodes and another run's."""
    folder, store = tmp_path / "data", str(tmp_path / "store")
    write_dataset(folder, [make_episode(40)])
    write_dataset(tmp_path / "other", [make_episode(30, 1), make_episode(25, 2)])
    main(["import", str(folder), "--to", store])
    main(["import", str(tmp_path / "other"), "--to", store])
    return folder, store


def test_the_same_steps_teach_the_same(places):
    folder, store = places
    states = []
    for path in (folder, f"store:{store}?where=run = 'data'"):
        algorithm = make_offline(path, IQL)
        algorithm.collect()
        algorithm.update()
        states.append(state_of(algorithm))
    of_folder, of_store = states
    assert of_folder.keys() == of_store.keys()
    for name, value in of_folder.items():
        assert torch.equal(of_store[name], value), name


def test_a_run_continues_with_its_own_episodes_alone(tmp_path, places):
    """A condition keeps those of other runs out; without one, a store that has grown is refused."""
    _, store = places

    def begin(name, path):
        sections = {"experiment": {"name": name, "output_dir": str(tmp_path)}, "dataset": {"path": path}}
        sections |= {"algorithm": {"name": "iql"}, "training": {"total_steps": 0}}
        cfg = ExperimentConfig.model_validate(sections)
        folder = RunFolder(cfg)
        folder.path.mkdir()
        write_inputs(inputs_of(cfg), folder)
        check_unchanged(cfg, folder)
        return cfg, folder

    some, every = begin("some", f"store:{store}?where=run = 'data'"), begin("every", f"store:{store}")
    write_dataset(tmp_path / "new", [make_episode(10, 3)])
    main(["import", str(tmp_path / "new"), "--to", store])
    check_unchanged(*some)
    with pytest.raises(
        ConfigError, match="these are not the episodes that the run began with; narrow"
    ) as caught:
        check_unchanged(*every)
    assert len(str(caught.value).splitlines()) == 1
