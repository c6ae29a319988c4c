"""Offline learning: which steps are learned from, when worlds are stepped, and what is refused before."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs_gpu.errors import SettingError
from pi_incubator.config import ConfigError, load_config
from pi_incubator.data.datasets.layout import manifest_of, write_manifest
from pi_incubator.data.datasets.steps import load_steps
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.errors import UserError
from pi_incubator.run import run
from pi_incubator.run_folder import RunFolder
from tests.off_policy import CPU, SPEC, B
from tests.offline import make_episode, make_offline, write_dataset

IQL = {"name": "iql", "offline_updates": 6, "updates_per_iteration": 2}


def load(folder, shards=range(1), num_shards=1, spec=SPEC):
    random = ShardedRandom(0, "dataset", shards, CPU)
    return load_steps(str(folder), spec, ("policy",), random, shards, num_shards)


def test_every_step_can_be_sampled_with_the_observation_after_it(tmp_path):
    """Across episodes too: the step after the end of one is not the next one of it."""
    episodes = [make_episode(4, 0), make_episode(3, 1, "terminated"), make_episode(2, 2, None)]
    ring = load(write_dataset(tmp_path / "data", episodes))
    assert len(ring) == 9
    steps = ring.steps_at(torch.arange(9))
    rows = [(episode, t) for episode in episodes for t in range(len(episode.reward))]
    for index, (episode, t) in enumerate(rows):
        observations = episode.observations["policy"]
        assert np.array_equal(steps["obs.policy"][index].numpy(), observations[t])
        assert np.array_equal(steps["next.policy"][index].numpy(), observations[t + 1])
        assert np.array_equal(steps["action"][index].numpy(), episode.action[t])
        assert steps["reward"][index].item() == episode.reward[t]
    assert steps["terminated"].nonzero().flatten().tolist() == [6]
    # The last step of an episode whose end was not recorded is bootstrapped like a truncated one.
    assert steps["truncated"].nonzero().flatten().tolist() == [3, 8]


def test_ranks_share_the_steps(tmp_path):
    """Two ranks with a shard each have what one rank with both has, and no step twice."""
    folder = write_dataset(tmp_path / "data", [make_episode(7), make_episode(4, 1)])
    rewards = [load(folder, range(k, k + 1), 2).state_dict()["reward"][:, 0] for k in range(2)]
    both = load(folder, range(2), 2).state_dict()["reward"]
    assert torch.equal(torch.stack(rewards, 1), both)
    assert len(set(torch.cat(rewards).tolist())) == 10  # of 11: they are cut into equal parts


def test_no_world_is_stepped_before_the_offline_updates_are_done(tmp_path):
    """The worlds of this test cannot be stepped."""
    iql = make_offline(write_dataset(tmp_path / "data", [make_episode(40)]), IQL)
    assert iql.num_iterations == 3
    before = [weight.detach().clone() for weight in iql.actor_weights]
    for iteration in range(3):
        iql.collect()
        metrics = iql.update()
        assert (iql.iteration, iql.env_steps) == (iteration + 1, 0)
    assert all(value.isfinite() for value in metrics.values())
    assert not any(torch.equal(*pair) for pair in zip(before, iql.actor_weights, strict=True))
    training = {"total_steps": 8}
    iql = make_offline(tmp_path / "data", IQL | {"offline_updates": 2}, training=training)
    iql.collect()
    iql.env.obs = {"policy": torch.zeros(4, 3)}
    with pytest.raises(NotImplementedError):
        iql.collect()


def test_the_normalizer_begins_with_the_moments_of_the_dataset(tmp_path):
    episode = make_episode(500)
    iql = make_offline(write_dataset(tmp_path / "data", [episode]), IQL)
    observed = torch.from_numpy(episode.observations["policy"][:-1])
    normalizer = iql.policy.normalizer["policy"]
    torch.testing.assert_close(normalizer.mean, observed.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalizer.std, observed.std(0, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 8), (0.5, 16), (1.0, B)])
def test_minibatches_mix_the_dataset_with_own_steps(tmp_path, share, expected):
    """In every shard the same share; own steps are marked by their reward."""
    folder = write_dataset(tmp_path / "data", [make_episode(40)])
    settings = IQL | {"offline_updates": 0, "dataset_share": share}
    iql = make_offline(folder, settings, training={"total_steps": 400}, compute={"shards": 2})
    stored = iql.replay.state_dict().items()
    steps = {k: torch.zeros(4, *v.shape[2:], dtype=v.dtype) for k, v in stored if k != "count"}
    iql.replay.add(steps | {"reward": torch.full((4,), 77.0), "valid": torch.ones(4, dtype=torch.bool)})
    iql.is_offline = False
    minibatch = iql.minibatch(B)
    from_dataset = (minibatch["reward"] != 77.0).view(2, -1).sum(1)
    assert from_dataset.tolist() == [expected // 2] * 2


MANIFEST = manifest_of(SPEC)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"env": "other"}, "its task is other, env.name = toy has toy"),
        (
            {"observations": {}},
            r"group 'policy' is missing, env.name = toy has float32 \[3\]",
        ),
        ({"control_hz": 25.0}, "its control rate in Hz is 25.0, env.name = toy has 50.0"),
        ({"action_low": (0.0,), "action_high": (1.0,)}, "its action width is 1, env.name = toy has 2"),
        ({"action_high": (1.0, 1.0)}, "its upper limits of actions is"),
    ],
)
def test_steps_of_other_worlds_are_refused_in_one_line(tmp_path, changes, expected):
    write_manifest(replace(MANIFEST, **changes), tmp_path)
    with pytest.raises(SettingError, match=expected) as caught:
        load(tmp_path)
    assert caught.value.field == "dataset.path"
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_dataset_is_refused(tmp_path):
    write_manifest(MANIFEST, tmp_path)
    with pytest.raises(SettingError, match="has no step for each of 1 shards; record some steps"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["dataset.path=null"],
            "dataset.path = 'null': algorithm iql learns from recorded steps; set",
        ),
        (["algorithm.name=sac"], "dataset.path = 'data': has no effect with algorithm.name = sac"),
        (["algorithm.name=bc", "training.total_steps=1000"], "training.total_steps = 1000: has no effect"),
        (["algorithm.offline_updates=7"], "algorithm.offline_updates = 7: is less than one iteration of"),
        (
            ["algorithm.dataset_share=0.1"],
            "algorithm.dataset_share = 0.1: has no effect with training",
        ),
        (["algorithm.replay=her"], "algorithm.replay = 'her': must be 'uniform'"),
        (["network.name=gru"], "network.name = 'gru': it has a state, and algorithm iql learns"),
        (["training.record=out"], "training.record = 'out': has no effect with training.total_steps = 0"),
        (
            ["env.episode_length_s=3"],
            "env.episode_length_s = 3.0: has no effect with training.total_steps = 0",
        ),
        (
            ["training.total_steps=5000", "training.record=./data"],
            "training.record = './data': is the dataset that is learned from",
        ),
        (["training.overlap=true"], "training.overlap = true: has no effect with algorithm.name = iql"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(tmp_path, settings, expected):
    path = tmp_path / "a.yaml"
    path.write_text("{algorithm: {name: iql}, training: {total_steps: 0}, dataset: {path: data}}")
    load_config(path)
    with pytest.raises(ConfigError) as caught:
        load_config(path, settings)
    assert f": {expected}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_short_form_names_the_dataset(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("{algorithm: {name: iql}, training: {total_steps: 0}}")
    assert load_config(path, ["dataset=some/folder"]).dataset.path == "some/folder"


def test_a_run_refuses_a_folder_that_is_no_dataset(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("{algorithm: {name: bc}, training: {total_steps: 0}, env: {name: cartpole_balance}}")
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=run", f"dataset={tmp_path / 'missing'}"]
    with pytest.raises(UserError, match=r"missing: is no dataset \(it has no manifest.json\)") as caught:
        run(path, place)
    assert len(str(caught.value).splitlines()) == 1
    assert not RunFolder(tmp_path / "run").saved()
