"""What holds for every algorithm of the registry: it learns, continues bit for bit, and is exported."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from pi_incubator.cli import eval as eval_command
from pi_incubator.cli import export as export_command
from pi_incubator.cli._trained import load_trained
from pi_incubator.deploy.session import load_exported
from pi_incubator.hooks.hook import Hook
from pi_incubator.registry import algorithms
from pi_incubator.run import run
from pi_incubator.run_folder import RunFolder, open_run
from tests.learning import assert_same_tensors, last_tensors

CONFIG = Path(__file__).parents[2] / "configs" / "ppo" / "cartpole_balance.yaml"
NUM_ITERATIONS, INTERRUPTED_AFTER = 4, 2
ALWAYS = [
    "env.num_envs=8",
    "training.total_steps=128",  # 4 iterations of 4 steps in 8 worlds
    "training.log_every=1",
    "checkpoint.save_every=1",
    "checkpoint.keep=10",
    "compute.compile=off",
    "tracking.backend=none",
    "evaluation.video=false",
    "evaluation.curve=false",
    "evaluation.num_episodes=1",
    "deployment.num_check_observations=50",
    "env.name=hopper",  # it falls at once, so that nothing is judged for long
    "env.episode_length_s=0.056",  # 7 steps, so that episodes end within iterations and between them
]
NOT_EXPORTED = "deployment.export=none"
"""For runs whose export nothing looks at: it takes longer than they train."""
NARROW = "network.hidden_sizes=[8]"
OWN = {
    "ppo": [NARROW, "algorithm.horizon=4", "algorithm.minibatch_size=16", "algorithm.num_epochs=2"],
    "a2c": ["algorithm.name=a2c", NARROW, "algorithm.horizon=4", "algorithm.minibatch_size=32"],
    "grpo": [
        "algorithm.name=grpo",
        NARROW,
        "algorithm.horizon=4",
        "algorithm.group_size=4",
        "algorithm.lookahead=1",
        "algorithm.minibatch_size=12",
        "algorithm.num_epochs=2",
        "algorithm.kl_coef=0.1",
        "algorithm.lr=3e-3",
    ],
    "sac": [
        "algorithm.name=sac",
        "algorithm.optimizer=muon",
        NARROW,
        "algorithm.horizon=4",
        "algorithm.batch_size=16",
        "algorithm.learning_starts=32",
        "algorithm.updates_per_step=0.25",
        "algorithm.buffer_size=64",  # so that it wraps around
    ],
    "td3": [
        "algorithm.name=td3",
        NARROW,
        "algorithm.replay=prioritized",
        "algorithm.save_buffer=always",
        "algorithm.n_step=3",
        "algorithm.horizon=4",
        "algorithm.batch_size=16",
        "algorithm.learning_starts=32",
        "algorithm.updates_per_step=0.25",
        "algorithm.buffer_size=64",
    ],
    "crossq": [
        "algorithm.name=crossq",
        "network.name=batch_norm",
        "network.hidden_sizes=[8]",
        "network.critic_sizes=[8]",
        "algorithm.horizon=4",
        "algorithm.batch_size=16",
        "algorithm.learning_starts=32",
        "algorithm.updates_per_step=0.25",
        "algorithm.buffer_size=64",
    ],
    "flash_sac": [
        "algorithm.name=flash_sac",
        "network.name=flash",
        "network.actor_width=8",
        "network.critic_width=8",
        "network.num_blocks=1",
        "network.expansion=2",
        "algorithm.horizon=4",
        "algorithm.batch_size=16",
        "algorithm.learning_starts=32",
        "algorithm.updates_per_step=0.25",
        "algorithm.buffer_size=64",
        "algorithm.num_bins=11",
    ],
    "world_model_gradient": [
        "algorithm.name=world_model_gradient",
        NARROW,
        "algorithm.horizon=4",
        "algorithm.model_sizes=[8]",
        "algorithm.num_models=2",
        "algorithm.sequence_length=2",
        "algorithm.imagined_steps=3",
        "algorithm.batch_size=16",
        "algorithm.learning_starts=32",
        "algorithm.updates_per_step=0.25",
        "algorithm.buffer_size=64",
    ],
    "dreamer": [
        "algorithm.name=dreamer",
        "network.name=rssm",
        "network.hidden_sizes=[8]",
        "network.recurrent_size=8",
        "network.num_latents=2",
        "network.num_classes=4",
        "algorithm.horizon=4",
        "algorithm.sequence_length=4",
        "algorithm.batch_size=16",
        "algorithm.imagined_steps=3",
        "algorithm.start_every=2",
        "algorithm.num_bins=11",
        "algorithm.learning_starts=32",
        "algorithm.updates_per_step=0.25",
        "algorithm.buffer_size=64",
    ],
    "distillation": [
        "algorithm.name=distillation",
        NARROW,
        "algorithm.horizon=4",
        "algorithm.num_updates=4",
        "algorithm.minibatch_size=16",
        "algorithm.buffer_size=64",
    ],
}
OFFLINE = [
    NARROW,
    "algorithm.batch_size=16",
    "algorithm.offline_updates=4",
    "algorithm.updates_per_iteration=2",
]
ONLINE = [
    "training.total_steps=64",  # 2 iterations on the dataset, then 2 of 4 steps in 8 worlds
    "algorithm.horizon=4",
    "algorithm.updates_per_step=0.25",
    "algorithm.buffer_size=64",
]
OWN |= {
    "bc": [
        "env.episode_length_s=null",  # no world is stepped
        "algorithm.name=bc",
        *OFFLINE,
        "algorithm.updates_per_iteration=1",
        "training.total_steps=0",
    ],
    "iql": ["algorithm.name=iql", *OFFLINE, *ONLINE],
    "td3_bc": ["algorithm.name=td3_bc", "algorithm.actor_every=1", *OFFLINE, *ONLINE],
    "cql": ["algorithm.name=cql", "algorithm.num_actions=2", *OFFLINE, *ONLINE],
}
"""Settings that make each algorithm tiny; a new one runs with its defaults until it is listed here."""
READ_DATASET = ("bc", "iql", "td3_bc", "cql")
"""Algorithms that learn from the steps of a training of another one."""
RECORDED = "recorded"
"""The run of that other one."""
WINDOWS = [
    "network.name=gru",
    "algorithm.replay=sequences",
    "algorithm.sequence_length=2",
    "algorithm.burn_in=1",
    "algorithm.n_step=2",
]
OWN |= {
    "ppo_rnd": [*OWN["ppo"], "algorithm.rnd_coef=0.5"],
    "sac_gru": [*OWN["sac"], *WINDOWS],
    "td3_gru": ["algorithm.name=td3", *OWN["sac"][1:], *WINDOWS],
}


class Interrupted(Exception):
    """The machine is gone."""


class InterruptAfter(Hook):
    """Ends the process after some iterations, before the last of them is saved."""

    def due(self, progress):
        return progress.iteration == INTERRUPTED_AFTER

    def __call__(self, progress):
        raise Interrupted


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Function that trains an algorithm; gives the run's folder."""
    folder = tmp_path_factory.mktemp("promises")

    def train_one(algorithm, name, *settings, hooks=()):
        own = OWN.get(algorithm, [f"algorithm.name={algorithm}"])
        if algorithm == "distillation":
            own = [*own, f"algorithm.teachers=[{json.dumps(str(finished('ppo').path))}]"]
        if algorithm in READ_DATASET:
            finished(RECORDED)
            own = [*own, f"dataset={folder / 'dataset'}"]
        if name == RECORDED:
            own = [*own, f"training.record={folder / 'dataset'}"]
        place = [f"experiment.output_dir={folder}", f"experiment.name={name}"]
        run(CONFIG, [*ALWAYS, *own, *place, *settings], hooks)
        return RunFolder(folder / name)

    def finished(algorithm):
        """The uninterrupted run, trained once."""
        if algorithm not in done:
            done[algorithm] = train_one("ppo" if algorithm == RECORDED else algorithm, algorithm)
        return done[algorithm]

    done = {}
    train_one.finished = finished
    return train_one


@pytest.fixture(params=sorted({*algorithms.names(), *OWN}))
def algorithm(request):
    return request.param


def weights_of(checkpoint):
    """The trained numbers of a checkpoint's policy, without the normalizer's moments."""
    tensors = load_file(checkpoint / "policy.safetensors")
    return {name: value for name, value in tensors.items() if not name.startswith("normalizer")}


def sha256(folder):
    return hashlib.sha256((folder.saved()[-1] / "policy.safetensors").read_bytes()).hexdigest()


def test_every_iteration_that_learns_changes_the_policy(train, algorithm):
    """An off-policy algorithm takes its first iteration to fill the buffer."""
    saved = [weights_of(path) for path in train.finished(algorithm).saved()]
    assert len(saved) == NUM_ITERATIONS
    for before, after in pairwise(saved):
        assert before.keys() == after.keys()
        assert any(not torch.equal(value, after[name]) for name, value in before.items())
        assert all(value.isfinite().all() for value in after.values())


def test_an_interrupted_run_ends_like_an_uninterrupted_one(train, algorithm):
    """Bit for bit, and so does everything else that is saved, such as a replay buffer."""
    whole, name = train.finished(algorithm), f"{algorithm}_interrupted"
    with pytest.raises(Interrupted):
        train(algorithm, name, NOT_EXPORTED, hooks=[InterruptAfter()])
    assert len(RunFolder(whole.path.parent / name).saved()) == INTERRUPTED_AFTER
    halves = train(algorithm, name, NOT_EXPORTED)
    assert len(halves.saved()) == NUM_ITERATIONS
    assert sha256(halves) == sha256(whole)
    assert_same_tensors(last_tensors(halves), last_tensors(whole))


def test_a_replay_buffer_is_kept_in_the_newest_checkpoint_alone(train):
    *older, newest = train.finished("sac").saved()
    buffer = load_file(newest / "replay.safetensors")
    assert int(buffer["count"]) == 4 * NUM_ITERATIONS
    assert buffer["reward"].shape == (8, 8)  # 64 steps of 8 worlds
    assert not any((path / "replay.safetensors").exists() for path in older)


def test_the_export_acts_like_the_policy(train, algorithm):
    folder = train.finished(algorithm)
    assert json.loads(folder.evaluation.read_text())["return"]["mean"] > 0
    onnxruntime.InferenceSession(folder.onnx, providers=["CPUExecutionProvider"])
    cfg, opened = open_run(str(folder.path))
    env, policy, _ = load_trained(cfg, opened, 8)
    exported = load_exported(folder.onnx, env.interface())
    ours, theirs = policy.initial_state(8), exported.initial_state(8)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(5):
            expected, ours = policy.mean(env.obs, ours)
            action, theirs = exported.mean(env.obs, theirs)
            torch.testing.assert_close(action, expected, rtol=0, atol=1e-5)
            env.step(torch.rand(8, env.spec.action_dim, generator=random) * 2.0 - 1.0)
    env.close()


def test_its_folder_can_be_judged_and_exported(train, algorithm, tmp_path):
    folder = train.finished(algorithm)
    results = {}
    for name, arguments in (("torch", []), ("onnx", ["--onnx"])):
        file = tmp_path / f"{name}.json"
        assert eval_command.main([str(folder.path), "--json", str(file), *arguments]) in (0, None)
        results[name] = json.loads(file.read_text())
    assert results["torch"] == json.loads(folder.evaluation.read_text())
    assert results["onnx"]["return"]["mean"] == pytest.approx(results["torch"]["return"]["mean"], rel=0.01)
    out = tmp_path / "bundle"
    assert export_command.main([str(folder.path), "--out", str(out)]) == 0
    assert (out / "policy.onnx").stat().st_size > 0
