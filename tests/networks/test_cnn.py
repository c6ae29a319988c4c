"""The convolutional policy: what it takes, what it learns from, and that it travels like any other."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from pi_incubator.algorithms._compiled import compiled_step
from pi_incubator.trainers.on_policy import collect, make_act
from pi_incubator.trainers.rollout import Rollout

from envs_gpu.make import make_env
from envs_gpu.pixels import PixelOptions
from envs_gpu.vec_env import EnvSpec
from pi_incubator.algorithms import make_algorithm
from pi_incubator.cli import eval as eval_command
from pi_incubator.cli.train import main
from pi_incubator.config import ConfigError, load_config
from pi_incubator.deploy.contract import Origin
from pi_incubator.deploy.pixels import export_pixels
from pi_incubator.errors import UserError
from pi_incubator.networks import make_network
from pi_incubator.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "cartpole_balance_pixels.yaml")
CPU = torch.device("cpu")
SHAPE = (2, 16, 24)
TINY_ENV = "env.pixels={width: 24, height: 16, camera: pole, frames: 2, gray: true}"
TINY = [
    TINY_ENV,
    "env.num_envs=4",
    "network.channels=[4, 8]",
    "network.hidden_sizes=[16]",
    "algorithm.horizon=16",
    "algorithm.minibatch_size=32",
    "algorithm.num_epochs=2",
    "training.total_steps=256",
    "training.log_every=1",
    "checkpoint.save_every=2",
    "tracking.backend=none",
    "evaluation.num_episodes=1",
    "evaluation.video=false",
    "deployment.num_check_observations=50",
]


@pytest.fixture(scope="module")
def cfg():
    return load_config(CONFIG, TINY)


@pytest.fixture
def policy(cfg):
    torch.manual_seed(0)
    limits = ((-1.0,), (1.0,))
    spec = EnvSpec("toy", 4, {"policy": 5}, 1, *limits, ("slider",), 100.0, 1000, CPU, SHAPE)
    return make_network(cfg.network, spec), spec


def some_pixels(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *SHAPE), dtype=torch.uint8, generator=generator)


def test_it_sees_pixels_and_nothing_else(policy):
    network, _ = policy
    pixels = some_pixels(4)
    assert network.groups == ("pixels",)
    obs = {"pixels": pixels, "policy": torch.randn(4, 5)}
    action = network.mean_action(obs)
    assert action.shape == (4, 1)
    assert torch.equal(network.mean_action(obs | {"policy": torch.full((4, 5), torch.nan)}), action)
    assert not torch.equal(network.mean_action({"pixels": 255 - pixels}), action)


def test_whole_numbers_and_floats_are_the_same_picture(policy):
    network, _ = policy
    onnx_form, pixels = network.as_onnx(), some_pixels(3)
    assert torch.equal(onnx_form(pixels), onnx_form(pixels.float()))
    assert torch.equal(onnx_form(pixels), network.mean_action({"pixels": pixels}))


def test_actor_and_critic_share_the_encoder(policy):
    network, _ = policy
    names = [name for name, _ in network.named_parameters()]
    assert sum("convolutions.0.weight" in name for name in names) == 1
    obs = {"pixels": some_pixels(4)}
    for output in (network.value(obs).sum(), network.mean_action(obs).sum()):
        network.zero_grad()
        output.backward()
        gradient = network.encoder["pixels"].convolutions[0].weight.grad
        assert gradient.abs().sum() > 0


def test_pictures_of_any_size_that_a_config_allows(cfg):
    limits = ((-1.0,), (1.0,))
    for shape in ((1, 8, 8), (9, 84, 84), (3, 33, 57)):
        spec = EnvSpec("toy", 2, {"policy": 5}, 1, *limits, ("slider",), 100.0, 1000, CPU, shape)
        network = make_network(cfg.network.model_copy(update={"channels": (4, 4, 4, 4)}), spec)
        assert network.value({"pixels": torch.zeros(2, *shape, dtype=torch.uint8)}).shape == (2,)


def test_rollout_and_update_on_real_worlds(cfg):
    torch.manual_seed(0)
    options = PixelOptions(**cfg.env.pixels.model_dump())
    env = make_env("cartpole_balance", num_envs=4, device=CPU, pixels=options)
    network = make_network(cfg.network, env.spec)
    learner = make_algorithm(cfg, network)
    rollout = Rollout(cfg.algorithm.horizon, env.spec, network.groups)
    before = {name: value.clone() for name, value in network.named_parameters()}
    first = env.obs["pixels"].clone()
    collect(env, network, make_act(network, compiled=False), rollout)
    stored = rollout.data["pixels"]
    assert (stored.dtype, stored.shape) == (torch.uint8, (16, 4, *SHAPE))
    assert torch.equal(stored[0], first)
    learner.advantage(rollout.data)
    metrics = learner.update(rollout.data)
    env.close()
    assert all(value.isfinite() for value in metrics.values())
    assert torch.equal(rollout.data["pixels"], stored)
    moved = [name for name, value in network.named_parameters() if not torch.equal(value, before[name])]
    assert any("convolutions" in name for name in moved)
    assert {"log_std", "actor.0.weight", "critic.0.weight"} <= set(moved)


def test_the_ratio_is_one_before_the_first_step(cfg, policy):
    """The loss sees the same policy as the worlds did: nothing on the way to it rounds the pictures."""
    network, _ = policy
    act = network.act({"pixels": some_pixels(32)}, torch.randn(32, 1))
    mean, std = network.distribution(network.encode(act.observation)["pixels"])
    log_prob = torch.distributions.Normal(mean, std).log_prob(act.action).sum(-1)
    torch.testing.assert_close(log_prob, act.log_prob)


def test_export_takes_whole_numbers_and_acts_alike(policy, cfg, tmp_path):
    network, spec = policy
    path, origin = tmp_path / "policy.onnx", Origin("c" * 64, "d" * 64, None, None, None)
    assert export_pixels(cfg, network, spec, some_pixels(64), origin, path) <= 1e-5
    with pytest.raises(UserError, match="cannot be written"):
        export_pixels(cfg, network, spec, some_pixels(4), origin, path / "below.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (signature,) = session.get_inputs()
    assert (signature.type, signature.shape[1:]) == ("tensor(uint8)", list(SHAPE))
    assert session.get_modelmeta().custom_metadata_map["observation"] == "pixels"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.pixels=null"], r"network.name = 'cnn': env.pixels = null draws nothing"),
        (["network.name=mlp"], r"network.name = 'mlp': it cannot see env.pixels; set it to cnn"),
        (["env.pixels={width: 4}"], r"env\.pixels\.width = 4: .*greater than or equal to 8"),
        (["env.pixels={wide: 64}"], r"env\.pixels\.wide"),
        (["env.pixels={renderer: egl}"], r"env\.pixels\.renderer = 'egl'.*warp"),
    ],
)
def test_wrong_combinations_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIG, overrides)


def test_a_camera_that_is_not_there_is_named(tmp_path):
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=nose"]
    pixels = TINY_ENV.replace("pole", "nose")
    with pytest.raises(ConfigError, match=r"env.pixels.camera = 'nose': the model has no such camera"):
        main(["--config", CONFIG, *TINY, pixels, *place])


def last_tensors(folder):
    from safetensors.torch import load_file

    parts = {file.stem: load_file(file) for file in folder.saved()[-1].glob("*.safetensors")}
    return {f"{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}


def test_a_run_continues_bit_for_bit_and_is_judged_like_its_export(tmp_path):
    def run(name, *overrides):
        place = [f"experiment.output_dir={tmp_path}", f"experiment.name={name}"]
        main(["--config", CONFIG, *TINY, *place, *overrides])
        return RunFolder(tmp_path / name)

    whole = run("whole", "algorithm.lr_schedule=constant")
    run("halves", "algorithm.lr_schedule=constant", "training.total_steps=128")
    expected = last_tensors(whole)
    continued = last_tensors(run("halves", "algorithm.lr_schedule=constant"))
    assert expected.keys() == continued.keys()
    assert "env.pixels.history" in expected
    for name, value in expected.items():
        assert torch.equal(value, continued[name]), name
    arguments = [str(whole.path), "--episodes", "1", "--json"]
    eval_command.main([*arguments, str(tmp_path / "torch.json")])
    eval_command.main([*arguments, str(tmp_path / "onnx.json"), "--onnx"])
    torch_return, onnx_return = (
        json.loads((tmp_path / name).read_text())["return"]["mean"] for name in ("torch.json", "onnx.json")
    )
    assert onnx_return == pytest.approx(torch_return, rel=0.05)


@pytest.mark.slow
def test_compiled_gradients_equal_the_eager_ones(cfg):
    """To what another order of sums leaves; Adam would make a whole step of a gradient near zero."""
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        options = PixelOptions(**cfg.env.pixels.model_dump())
        env = make_env("cartpole_balance", num_envs=4, device=CPU, pixels=options)
        network = make_network(cfg.network, env.spec)
        learner = make_algorithm(cfg, network)
        rollout = Rollout(cfg.algorithm.horizon, env.spec, network.groups)
        collect(env, network, make_act(network, compiled), rollout)
        learner.advantage(rollout.data)
        differentiate = compiled_step(learner._gradients) if compiled else learner._gradients
        gradients.append(differentiate(rollout.data.flatten())[0])
        env.close()
    for eager, compiled in zip(*gradients, strict=True):
        assert eager.abs().max() > 0
        assert (eager - compiled).abs().max() <= 1e-3 * eager.abs().max()


@pytest.mark.slow
def test_it_learns_from_pixels(tmp_path):
    """A pole that nobody balances is worth 210 of 500 in five seconds from its start."""
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=learned", "tracking.backend=none"]
    brief = ["training.total_steps=250000", "evaluation.num_episodes=1", "evaluation.video=false"]
    main(["--config", CONFIG, *place, *brief])
    rows = [json.loads(line) for line in (tmp_path / "learned" / "metrics.jsonl").read_text().splitlines()]
    returns = [row["episode/return"] for row in rows if row.get("episode/return") is not None]
    first, last = sum(returns[:4]) / 4, sum(returns[-4:]) / 4
    assert first < 260
    assert last > 350
