"""`pi-distill` as a user runs it: what it leaves behind, and what it says about bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pi_incubator.cli import distill as distill_command
from pi_incubator.cli import eval as eval_command
from pi_incubator.cli._trained import load_trained
from pi_incubator.cli.distill import main
from pi_incubator.config import load_config
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder, open_run
from pi_incubator.tracking import read_metrics
from tests.learning import last_tensors

BALANCE_GAINS = [[0.1, 0.0, 3.0, 0.2, 0.8]]
SMALL = ["network.hidden_sizes=[4]", "network.activation=tanh", "network.normalize_observations=true"]
BRIEF = [*SMALL, "training.total_steps=10240", "training.log_every=5"]
TINY = [*SMALL, "training.total_steps=512", "training.log_every=1", "algorithm.num_updates=5"]
TINY += ["evaluation.num_episodes=1", "deployment.export=none", "evaluation.curve=false"]


def distill(tmp_path, teachers, *arguments, name="student", student="mlp"):
    """Run the command; returns the student's folder."""
    teachers = [teachers] if isinstance(teachers, Path) else teachers
    place = [f"experiment.output_dir={tmp_path}", f"experiment.name={name}"]
    main(["--teacher", *map(str, teachers), "--student", student, *arguments, *place])
    return RunFolder(tmp_path / name)


def kept(folder):
    return json.loads(folder.distillation.read_text())["teachers"][0]["return_kept"]


@pytest.fixture(scope="module")
def taught(balance, tmp_path_factory):
    """A student that learned online, and what it learned from."""
    folder = tmp_path_factory.mktemp("taught")
    return distill(folder, balance, "--record", str(folder / "seen.safetensors"), *BRIEF)


@pytest.mark.slow
def test_a_small_student_balances_like_its_teacher(taught):
    result = json.loads(taught.distillation.read_text())["teachers"][0]
    assert result["teacher_return"] > 990
    assert result["return_kept"] >= 0.95
    assert result["teacher_size"] == {"parameters": 227, "actor_parameters": 113}
    assert result["student_size"] == {"parameters": 59, "actor_parameters": 29}


def test_the_result_is_an_ordinary_run(taught, tmp_path):
    for file in (taught.config, taught.metrics, taught.curve, taught.onnx, taught.evaluation):
        assert file.stat().st_size > 0
    rows = read_metrics(taught.metrics)
    assert rows[0]["teacher_share"] > 0
    assert rows[-1]["teacher_share"] == 0
    assert rows[-1]["policy/kl"] < rows[0]["policy/kl"]
    eval_command.main([str(taught.path), "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(taught.evaluation.read_text())


@pytest.mark.slow
def test_offline_learns_the_same_from_the_file(taught, balance, tmp_path):
    dataset = taught.path.parent / "seen.safetensors"
    tensors = load_file(dataset)
    assert tensors["observation.policy"].shape == (10240, 5)
    expected = tensors["observation.policy"] @ torch.tensor(BALANCE_GAINS).T
    torch.testing.assert_close(tensors["mean"], expected, rtol=1e-4, atol=1e-5)
    assert tensors["std"].unique().tolist() == pytest.approx([0.22313])
    folder = distill(
        tmp_path,
        balance,
        "--offline",
        str(dataset),
        *BRIEF,
        "deployment.export=none",
        "evaluation.curve=false",
    )
    assert kept(folder) >= 0.95
    assert not list(folder.saved()[-1].glob("env*"))


def test_a_run_that_was_cut_off_continues(balance, tmp_path):
    overrides = [item for item in TINY if not item.startswith("training.total_steps")]
    distill(tmp_path, balance, *overrides, "training.total_steps=256")
    folder = distill(tmp_path, balance, *TINY)
    assert [row["iteration"] for row in read_metrics(folder.metrics)] == [0, 1]


@pytest.mark.slow
def test_a_recurrent_student_that_was_cut_off_remembers(balance, tmp_path):
    overrides = [item for item in TINY if not item.startswith("training.total_steps")]
    folder = distill(tmp_path, balance, *overrides, "training.total_steps=256", student="gru")
    before = last_tensors(folder)
    assert before["state_0.student"].any()
    distill(tmp_path, balance, *TINY, student="gru")
    assert [row["iteration"] for row in read_metrics(folder.metrics)] == [0, 1]
    assert not torch.equal(last_tensors(folder)["state_0.student"], before["state_0.student"])
    assert kept(folder) > 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(balance, tmp_path):
    runs = [distill(tmp_path, balance, *TINY, name=name) for name in ("a", "b")]
    one, other = map(last_tensors, runs)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_an_int8_student_is_judged_rounded_and_saved_plain(balance, tmp_path, capsys):
    folder = distill(
        tmp_path,
        balance,
        *BRIEF,
        "algorithm.fake_quantize=int8",
        "deployment.export=none",
        "evaluation.curve=false",
    )
    result = json.loads(folder.distillation.read_text())
    assert result["fake_quantized_int8"][0]["return_kept"] >= 0.95
    assert result["teachers"][0]["return_kept"] >= 0.95
    assert "rounded to int8: teacher on cartpole_balance: student keeps" in capsys.readouterr().out
    cfg, run = open_run(str(folder.path))
    env, policy, _ = load_trained(cfg, run, 1)
    env.close()
    saved = {key.removeprefix("policy.") for key in last_tensors(folder) if key.startswith("policy.")}
    assert saved == policy.state_dict().keys()


def test_two_teachers_of_two_tasks_make_one_student(balance, save_run, tmp_path):
    """The second one's task is another start of the same cartpole; it is taught to stand still there."""
    lazy = save_run(tmp_path, [[0.0] * 5], env="cartpole_swingup", name="lazy")
    folder = distill(tmp_path, [balance, lazy], *TINY, "algorithm.weights=[3, 1]")
    results = json.loads(folder.distillation.read_text())["teachers"]
    assert [result["task"] for result in results] == ["cartpole_balance", "cartpole_swingup"]
    state = last_tensors(folder)
    learned = {"policy", "critic", "optimizer", "feature_map", "counters", "skipped", "buffer"}
    assert {key.split(".")[0] for key in state} == {"env", "env_1", "random"} | learned
    metrics = read_metrics(folder.metrics)[-1]
    assert {"physics/broken", "lazy/physics/broken"} <= set(metrics)


@pytest.mark.slow
def test_a_blind_student_of_a_privileged_teacher(save_run, tmp_path):
    """The teacher acts on what the critic sees, the student on what the robot measures."""
    blind = ["training.total_steps=512", "algorithm.num_updates=5", "evaluation.num_episodes=1"]
    blind += ["deployment.export=none", "evaluation.curve=false", "network.normalize_observations=true"]
    seer = save_run(tmp_path, None, "go1_velocity", "seer", network="encoders", actor={"critic": "mlp"})
    folder = distill(tmp_path, seer, *blind, "env.observation_history=2", name="blind")
    cfg, run = open_run(str(folder.path))
    env, policy, _ = load_trained(cfg, run, 1)
    assert policy.groups == ("policy",)
    assert policy.normalizer["policy"].moments[0].eq(512).all()
    assert env.spec.obs_dims["policy"] == 2 * 45  # the last two observations; the teacher saw one of 61
    env.close()


def test_the_teacher_s_normalizer_can_be_kept(balance, save_run, tmp_path):
    teacher = save_run(tmp_path, BALANCE_GAINS, name="normal", normalize_observations=True)
    folder = distill(tmp_path, teacher, *TINY, "algorithm.normalizer=teacher")
    assert (
        last_tensors(folder)["policy.normalizer.policy.moments"][0].eq(0).all()
    )  # as in the teacher, who gathered none
    with pytest.raises(UserError, match=r"algorithm\.normalizer = 'teacher': the teacher has no such"):
        distill(tmp_path, balance, *TINY, "algorithm.normalizer=teacher", name="none")


def refused(tmp_path, teachers, *arguments, **names):
    """What the command says, in one line, before a world is stepped."""
    with pytest.raises(UserError) as caught:
        distill(tmp_path, teachers, *TINY, *arguments, **names)
    assert not list((tmp_path / names.get("name", "student")).glob("checkpoints/*"))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_teachers_that_do_not_fit(balance, save_run, tmp_path):
    other = save_run(tmp_path, None, env="inverted_pendulum", name="other")
    assert "of shape (4,), the student's worlds (5,)" in refused(tmp_path, [balance, other])
    history = refused(tmp_path, balance, "env.observation_history=3")
    assert "has observations 'policy' of shape (5,), the student's worlds (15,); name runs" in history
    assert "is no run folder" in refused(tmp_path, tmp_path / "nowhere")
    untrained = tmp_path / "untrained"
    shutil.copytree(balance, untrained)
    shutil.rmtree(untrained / "checkpoints")
    assert "has no checkpoint yet; train it first" in refused(tmp_path, untrained)


def test_settings_that_do_not_fit(balance, save_run, tmp_path):
    assert "network.name = 'mpl': unknown network; did you mean 'mlp'?" in refused(
        tmp_path, balance, student="mpl"
    )
    assert "file not found" in refused(tmp_path, balance, student="nowhere.yaml")
    weights = refused(tmp_path, balance, "algorithm.weights=[1, 2]")
    assert "algorithm.weights = [1.0, 2.0]: 2 weights for 1 teachers" in weights
    features = refused(tmp_path, [balance, balance], "algorithm.feature_coef=1.0")
    assert "2 teachers share no features; set it to 0" in features
    assert "each of 9 teachers needs a world; set it to 9" in refused(tmp_path, [balance] * 9)
    small = refused(tmp_path, balance, "algorithm.buffer_size=255")
    assert "buffer_size = 255: is less than the 256 steps of one iteration; set it to at least 256" in small
    silent = save_run(tmp_path, BALANCE_GAINS, name="silent", with_critic=False)
    value = refused(tmp_path, silent, "algorithm.value_coef=1.0")
    assert f"algorithm.value_coef = 1.0: the teacher {silent} has no value function; set it to 0" in value
    with pytest.raises(UserError, match=r"is the folder of a teacher, which would be lost"):
        distill(balance.parent, balance, *TINY, name=balance.name)
    assert RunFolder(balance).saved()


@pytest.mark.parametrize(
    ("algorithm", "horizon"),
    [
        ("{horizon: 16, minibatch_size: 128}", 16),
        ("{name: distillation, horizon: 8}", 8),
        ("{name: distillation, teachers: [elsewhere], horizon: 8}", 8),
        ("{name: distillation}", 64),
    ],
)
def test_the_horizon_is_that_of_the_student_s_file(balance, tmp_path, monkeypatch, algorithm, horizon):
    """Also where the file, or one that it inherits from, names another algorithm."""
    ran = []
    monkeypatch.setattr(distill_command, "run", lambda config, settings: ran.append((config, settings)))
    file = tmp_path / "student.yaml"
    file.write_text(f"env: {{name: cartpole_balance, num_envs: 8}}\nalgorithm: {algorithm}\n")
    main(["--teacher", str(balance), "--student", str(file)])
    cfg = load_config(*ran[0])
    assert cfg.algorithm.horizon == horizon
    assert cfg.algorithm.teachers == (str(balance),)
    main(["--teacher", str(balance), "--student", str(file), "algorithm.horizon=4"])
    assert load_config(*ran[1]).algorithm.horizon == 4


def test_what_a_recurrent_student_cannot_do(balance, tmp_path):
    file = str(tmp_path / "seen.safetensors")
    record = refused(tmp_path, balance, "--record", file, student="gru")
    assert "a recurrent student learns from sequences" in record
    offline = refused(tmp_path, balance, "--offline", file, student="gru")
    assert f"algorithm.dataset = {file!r}: holds single steps, and a recurrent student" in offline
    rounds = refused(tmp_path, balance, "algorithm.fake_quantize=int8", student="gru")
    assert "algorithm.fake_quantize = 'int8': rounds the layers of an mlp" in rounds


def spoiled(change):
    """A good file's tensors and metadata, and what `change` makes of them."""
    number = 20
    tensors = {"observation.policy": torch.randn(number, 5), "mean": torch.zeros(number, 1)}
    tensors |= {"std": torch.ones(number, 1), "value": torch.zeros(number)}
    metadata = {"format": "1", "joint_names": "slider", "control_hz": "100"}
    metadata |= {"action_low": "[-1.0]", "action_high": "[1.0]"}
    change(tensors, metadata)
    return tensors, metadata


SPOILED = {
    "wide": (
        lambda t, m: t.update({"observation.policy": torch.zeros(20, 6)}),
        "float32 [20, 6], the student",
    ),
    "short": (lambda t, m: t.update({"std": torch.ones(19, 1)}), "has 'std' of float32 [19, 1]"),
    "double": (lambda t, m: t.update({"mean": torch.zeros(20, 1).double()}), "has 'mean' of float64"),
    "nan": (lambda t, m: t["mean"].fill_(torch.nan), "'mean' holds numbers that are not finite"),
    "std": (lambda t, m: t["std"].zero_(), "'std' holds numbers that are not positive"),
    "blind": (
        lambda t, m: t.pop("observation.policy"),
        "has no 'observation.policy', which this student needs",
    ),
    "labels": (lambda t, m: t.pop("mean"), "has no 'mean'"),
    "joints": (
        lambda t, m: m.update({"joint_names": "hinge"}),
        "joint_names = hinge, the student has slider",
    ),
    "newer": (lambda t, m: m.update({"format": "2"}), "has format 2, this version reads 1; upgrade"),
    "other": (lambda t, m: m.clear(), "holds no demonstrations"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_files_that_do_not_fit(how, balance, tmp_path):
    change, message = SPOILED[how]
    tensors, metadata = spoiled(change)
    path = tmp_path / "file.safetensors"
    save_file(tensors, path, metadata=metadata)
    assert message in refused(tmp_path, balance, "--offline", str(path))


def test_files_that_are_none(balance, tmp_path):
    path = tmp_path / "file.safetensors"
    assert "file not found; record it again" in refused(tmp_path, balance, "--offline", str(path))
    torch.save({"mean": torch.zeros(3)}, path)  # a pickle
    assert "is no whole safetensors file" in refused(tmp_path, balance, "--offline", str(path))
    tensors, metadata = spoiled(lambda tensors, metadata: None)
    save_file(tensors, path, metadata=metadata)
    path.write_bytes(path.read_bytes()[:-10])
    assert "is no whole safetensors file" in refused(tmp_path, balance, "--offline", str(path))
    with pytest.raises(UserError, match=r"--record and --offline exclude each other"):
        main(["--teacher", "x", "--student", "mlp", "--offline", "a", "--record", str(tmp_path / "b")])
    features = ("--offline", str(path), "algorithm.feature_coef=1.0")
    save_file(tensors, path, metadata=metadata)
    assert "has no 'features', which this student needs" in refused(tmp_path, balance, *features)
