"""The whole loop: it learns, it continues bit for bit, and it reads every setting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from pi_incubator import finish
from pi_incubator.cli.distill import main as distill
from pi_incubator.cli.train import main
from pi_incubator.config import ExperimentConfig, load_config
from pi_incubator.config.models import UNIONS
from pi_incubator.config.section import Section
from pi_incubator.launch.plan import make_plan
from pi_incubator.layers.normalizer import NoNormalizer
from pi_incubator.run_folder import RunFolder
from pi_incubator.training.overlap import OverlappedUpdates
from tests.learning import last_tensors

ROOT = Path(__file__).parents[2]
SIZES = [
    "env.num_envs=4",
    "algorithm.horizon=16",
    "algorithm.minibatch_size=32",
    "algorithm.num_epochs=2",
    "training.total_steps=256",
]
OFF_POLICY = [
    "env.num_envs=4",
    "algorithm.batch_size=16",
    "algorithm.buffer_size=64",
    "algorithm.learning_starts=32",
    "training.total_steps=64",
]
BRIEF = [
    "training.log_every=1",
    "checkpoint.save_every=2",
    "tracking.backend=none",
    "evaluation.num_episodes=2",
    "evaluation.video=false",
    "env.name=hopper",  # it falls at once, so that nothing is judged for long
    "deployment.export=none",  # it takes longer than these runs train
    "evaluation.curve=false",
]
CARTPOLE = "env.name=cartpole_balance"
EXPORTED = ["deployment.export=onnx", "deployment.num_check_observations=50"]
FINISHED = [*EXPORTED, "evaluation.curve=true"]


def run(tmp_path, name, *overrides, config="ppo/cartpole_balance.yaml", sizes=SIZES):
    """Train in this process; returns the run's folder."""
    place = [f"experiment.output_dir={tmp_path}", f"experiment.name={name}"]
    main(["--config", str(ROOT / "configs" / config), *sizes, *BRIEF, *place, *overrides])
    return RunFolder(tmp_path / name)


def test_run_folder_is_complete(tmp_path):
    folder = run(tmp_path, "complete", *FINISHED)
    for file in (folder.config, folder.metrics, folder.curve, folder.onnx, folder.evaluation):
        assert file.stat().st_size > 0
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [64, 128, 192, 256]
    assert {"mean", "std", "min", "max"} == set(json.loads(folder.evaluation.read_text())["return"])


def test_pictures_that_fail_cost_a_sentence_each(tmp_path, monkeypatch, caplog):
    """Drivers, fonts and encoders may raise what they like: the policy is there."""

    def fail(*arguments, **options):
        raise RuntimeError("no\nscreen")

    for name in ("record_video", "draw_curve"):
        monkeypatch.setattr(finish, name, fail)
    folder = run(tmp_path, "blind", *FINISHED, "evaluation.video=true", "training.total_steps=64")
    assert folder.onnx.exists()
    warnings = [record.getMessage() for record in caplog.records if record.name == "pi_incubator.finish"]
    assert warnings == ["no curve: RuntimeError: no screen", "no video: RuntimeError: no screen"]


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ("ppo/cartpole_balance.yaml", "hopper"),
        pytest.param("experiment_config_baseline.yaml", "ant", marks=pytest.mark.slow),
    ],
)
def test_continued_run_equals_an_uninterrupted_one(tmp_path, config, task):
    # A linear schedule depends on the total.
    settings = [f"env.name={task}", "algorithm.lr_schedule=adaptive"]
    whole = run(tmp_path, "whole", *settings, config=config)
    run(tmp_path, "halves", "training.total_steps=128", *settings, config=config)
    halves = run(tmp_path, "halves", *settings, config=config)
    expected, continued = last_tensors(whole), last_tensors(halves)
    assert expected.keys() == continued.keys()
    for name, value in expected.items():
        assert torch.equal(value, continued[name]), name


@pytest.mark.slow
def test_same_seed_same_weights(tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    runs = [run(tmp_path, name, f"experiment.seed={seed}") for name, seed in seeds.items()]
    one, other, third = map(last_tensors, runs)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(one["policy.head.0.weight"], third["policy.head.0.weight"])


@pytest.mark.parametrize("schedule", ["constant", "linear", "adaptive"])
def test_learning_rate_follows_its_schedule(tmp_path, schedule):
    folder = run(tmp_path, schedule, f"algorithm.lr_schedule={schedule}", "algorithm.lr=1e-3")
    rates = [json.loads(line)["policy/lr"] for line in folder.metrics.read_text().splitlines()]
    if schedule == "constant":
        assert rates == pytest.approx([1e-3] * 4)
    elif schedule == "linear":
        assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    else:
        assert len(set(rates)) > 1


def test_every_setting_is_read(tmp_path, monkeypatch):
    """A key that nothing reads would be a lie to the user who sets it."""
    read = set()
    plain = Section.__getattribute__

    def recording(self, name):
        if name in type(self).model_fields:
            read.add((type(self).__name__, name))
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", recording, raising=False)
    video = ["evaluation.video=true", "evaluation.video_length_s=0.1", "algorithm.lr_schedule=adaptive"]
    run(tmp_path, "reads", *FINISHED, "tracking.backend=mlflow", "algorithm.rnd_coef=0.1", *video)
    run(tmp_path, "sees", CARTPOLE, config="ppo/cartpole_balance_pixels.yaml")
    for network in ("gru", "lstm", "mamba", "mingru", "encoders", "transformer"):
        run(tmp_path, network, f"network.name={network}", "training.total_steps=64")
    record = f"training.record={tmp_path / 'dataset'}"
    run(tmp_path, "recorded", record, "training.total_steps=64")
    small = ["env.num_envs=4", "algorithm.batch_size=16", "algorithm.updates_per_iteration=2"]
    small += ["algorithm.offline_updates=2", f"dataset={tmp_path / 'dataset'}"]
    for algorithm in ("bc", "iql", "td3_bc", "cql"):
        steps = f"training.total_steps={0 if algorithm == 'bc' else 16}"
        run(tmp_path, algorithm, f"algorithm.name={algorithm}", steps, sizes=small)
    networks = {"sac": "mlp", "td3": "mlp", "flash_sac": "flash", "crossq": "batch_norm"}
    for algorithm, network in networks.items():
        own = [f"network.name={network}", "network.normalize_observations=true"]
        replay = ["algorithm.replay=prioritized", f"algorithm.name={algorithm}"]
        run(tmp_path, algorithm, *replay, *own, sizes=OFF_POLICY)
    discrete = ["env.name=gymnasium/CartPole-v1", "algorithm.name=sac"]
    run(tmp_path, "sac_discrete", *discrete, sizes=OFF_POLICY)
    of_grpo = ["algorithm.name=grpo", "algorithm.group_size=2", "algorithm.kl_coef=0.1"]
    run(tmp_path, "grpo", *of_grpo, "algorithm.lr_schedule=adaptive")
    run(tmp_path, "a2c", "algorithm.name=a2c", sizes=[line for line in SIZES if "num_epochs" not in line])
    small = ["algorithm.sequence_length=4", "algorithm.imagined_steps=2", "algorithm.updates_per_step=0.1"]
    run(tmp_path, "imagines", "algorithm.name=world_model_gradient", *small, sizes=OFF_POLICY)
    windows = ["network.name=gru", "algorithm.replay=sequences", "algorithm.sequence_length=4"]
    for algorithm in ("sac", "td3"):
        own = ["algorithm.burn_in=2", f"algorithm.name={algorithm}"]
        run(tmp_path, f"{algorithm}_gru", *windows, *own, sizes=OFF_POLICY)
    sizes = ["algorithm.name=dreamer", "algorithm.sequence_length=4"]
    pictures = ["env.pixels={width: 16, height: 16, frames: 1}", "network.channels=[4]"]
    run(tmp_path, "dreamer", "network.name=rssm", *sizes, sizes=OFF_POLICY)
    run(tmp_path, "dreamer_pixels", "network.name=rssm_pixels", *sizes, CARTPOLE, *pictures, sizes=OFF_POLICY)
    launched = load_config("cartpole_balance.yaml", ["compute.launcher=ray", "compute.num_workers=2"])
    make_plan(launched, "cartpole_balance.yaml", ())
    student = ["experiment.name=student", "training.total_steps=128", "algorithm.fake_quantize=int8"]
    distill(["--teacher", str(tmp_path / "reads"), "--student", "mlp", *student, "evaluation.video=false"])
    plain_sections = (f.annotation for name, f in ExperimentConfig.model_fields.items() if name not in UNIONS)
    sections = {*plain_sections, *(member for union in UNIONS.values() for member in union.members.values())}
    declared = {(section.__name__, name) for section in sections for name in section.model_fields}
    # By every algorithm that learns with these networks.
    unread = ("FlashSettings", "BatchNormSettings", "RSSMVectorSettings", "RSSMPixelsSettings")
    refused = {(network, "init_log_std") for network in unread}
    refused |= {("BCSettings", key) for key in ("updates_per_step", "learning_starts")}
    refused |= {("CQLSettings", "entropy_share")}
    assert declared - read == refused


@pytest.mark.slow
def test_torchrun_trains(tmp_path):
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=launched"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=1"]
    command = [
        *launcher,
        "train_ppo.py",
        "--config",
        "configs/ppo/cartpole_balance.yaml",
        *SIZES,
        *BRIEF,
        *EXPORTED,
        *place,
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300, env=os.environ)
    assert (tmp_path / "launched" / "policy.onnx").exists()


@pytest.mark.parametrize("backend", ["warp", pytest.param("mjx", marks=pytest.mark.slow)])
def test_other_backends_train_too(tmp_path, backend):
    folder = run(tmp_path, backend, *EXPORTED, CARTPOLE, f"env.backend={backend}")
    assert folder.onnx.exists()


@pytest.mark.slow
def test_compiled_run_continues_bit_for_bit(tmp_path):
    settings = ["compute.compile=on", "env.num_envs=8"]
    whole = run(tmp_path, "whole", *settings, config="experiment_config_baseline.yaml")
    for steps in (128, 256):
        total = f"training.total_steps={steps}"
        halves = run(tmp_path, "halves", *settings, total, config="experiment_config_baseline.yaml")
    expected, continued = last_tensors(whole), last_tensors(halves)
    for name, value in expected.items():
        assert torch.equal(value, continued[name]), name


@pytest.mark.slow
def test_overlapped_runs_continue_bit_for_bit(tmp_path):
    """And saving more often changes nothing."""
    # Saved after iterations 2 and 4 of 4: an update is under way each time.
    schedule = "algorithm.lr_schedule=adaptive"  # a linear one depends on the total
    overlap = ["training.overlap=true", "checkpoint.save_every=2", schedule]
    whole = run(tmp_path, "whole", *overlap)
    for steps in (128, 256):
        halves = run(tmp_path, "halves", *overlap, f"training.total_steps={steps}")
    again = run(tmp_path, "again", *overlap)
    often = run(tmp_path, "often", *overlap, "checkpoint.save_every=1")
    alone = run(tmp_path, "alone", "checkpoint.save_every=2", schedule)
    expected = last_tensors(whole)
    for other in (halves, again, often):
        assert all(torch.equal(value, last_tensors(other)[name]) for name, value in expected.items())
    # One update late, so it is not what a run without overlap learns.
    assert any(not torch.equal(value, expected[name]) for name, value in last_tensors(alone).items())


class OneWeight(torch.nn.Module):
    """As much of an actor-critic as updates in the background ask for."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.policy = torch.nn.Module()
        self.policy.normalizer = NoNormalizer()


def test_the_first_rollouts_of_an_overlapped_run_are_one_update_late():
    model = OneWeight()

    def learn(data):
        """Adds one to the weight, in the background."""
        with torch.no_grad():
            model.weight.add_(1.0)
        return {"seen": data["x"].clone()}

    updates = OverlappedUpdates(learn, model)
    acted, data = [], TensorDict({"x": torch.zeros(1)}, batch_size=[1])
    for iteration in range(4):
        acted.append(updates.actor.weight.item())
        data["x"].fill_(iteration)
        metrics = updates.update(data)
        data["x"].fill_(torch.nan)  # the next rollout overwrites it
    assert acted == [0.0, 0.0, 1.0, 2.0]
    assert metrics["seen"].item() == 2.0
    updates.settle()  # as before a checkpoint: the next rollout is one update late all the same
    assert (model.weight.item(), updates.actor.weight.item()) == (4.0, 3.0)


@pytest.mark.slow
def test_cartpole_balance_is_learned(tmp_path):
    """95 % of the largest return, which is 1000."""
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=learned", "tracking.backend=none"]
    main(["--config", str(ROOT / "configs" / "ppo" / "cartpole_balance.yaml"), *place])
    assert json.loads((tmp_path / "learned" / "evaluation.json").read_text())["return"]["mean"] >= 950
