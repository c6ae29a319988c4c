"""The convolutional policy: what it takes, what it learns from, and that it travels like any other."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.pixels import PixelOptions
from envs_gpu.vec_env import EnvSpec
from pi_incubator.cli import eval as eval_command
from pi_incubator.cli.train import main
from pi_incubator.config import ConfigError, load_config
from pi_incubator.deploy.contract import Origin
from pi_incubator.deploy.pixels import export_pixels
from pi_incubator.errors import UserError
from pi_incubator.run_folder import RunFolder
from pi_incubator.training.compiled import compiled_step
from tests.envs import StillEnv
from tests.learning import assert_same_tensors, last_tensors, make_algorithm

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "ppo" / "cartpole_balance_pixels.yaml")
CPU = torch.device("cpu")
SHAPE = (2, 16, 24)
TINY_ENV = "env.pixels={width: 24, height: 16, camera: pole, frames: 2, gray: true}"
SIZES = [
    TINY_ENV,
    "env.num_envs=4",
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
CNN = ["network.channels=[4, 8]"]
PARTS = [
    "network.name=encoders",
    "network.actor={pixels: {name: cnn, hidden_sizes: [16], channels: [4, 8]}}",
    "network.critic={pixels: {name: cnn, hidden_sizes: [16], channels: [4]}, policy: mlp}",
]
TINY = [*SIZES, *CNN]


@pytest.fixture(scope="module")
def cfg():
    return load_config(CONFIG, TINY)


def make_ppo(cfg, shape=SHAPE, **network):
    """PPO on worlds that show pictures of `shape`."""
    torch.manual_seed(0)
    limits = ((-1.0,), (1.0,))
    spec = EnvSpec("toy", 4, {"policy": 5}, 1, *limits, ("slider",), 100.0, 1000, CPU, shape)
    changed = cfg.model_copy(update={"network": cfg.network.model_copy(update=network)})
    return make_algorithm(changed, StillEnv(spec))


@pytest.fixture
def ppo(cfg):
    return make_ppo(cfg)


@pytest.fixture
def real_env(cfg):
    options = PixelOptions(**cfg.env.pixels.model_dump())
    env = make_env("cartpole_balance", num_envs=4, device=CPU, pixels=options)
    yield env
    env.close()


def mean_of(ppo, obs):
    """The deterministic action for raw observations."""
    return ppo.policy.mean(obs, ppo.policy.initial_state(len(obs["pixels"])))[0]


def value_of(ppo, obs):
    return ppo.model.value(obs, ppo.model.initial_state(len(obs["pixels"])))


def some_pixels(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *SHAPE), dtype=torch.uint8, generator=generator)


def test_it_sees_pixels_and_nothing_else(ppo):
    pixels = some_pixels(4)
    assert ppo.model.groups == ppo.policy.groups == ("pixels",)
    obs = {"pixels": pixels, "policy": torch.randn(4, 5)}
    action = mean_of(ppo, obs)
    assert action.shape == (4, 1)
    assert torch.equal(mean_of(ppo, obs | {"policy": torch.full((4, 5), torch.nan)}), action)
    assert not torch.equal(mean_of(ppo, {"pixels": 255 - pixels}), action)


def test_whole_numbers_and_floats_are_the_same_picture(ppo):
    onnx_form, pixels = ppo.policy.as_onnx(), some_pixels(3)
    assert torch.equal(onnx_form(pixels), onnx_form(pixels.float()))
    assert torch.equal(onnx_form(pixels), mean_of(ppo, {"pixels": pixels}))


def test_actor_and_critic_share_the_encoder(ppo):
    names = [name for name, _ in ppo.model.named_parameters()]
    assert sum("convolutions.0.weight" in name for name in names) == 1
    assert len(ppo.parameters) == len(names)
    obs = {"pixels": some_pixels(4)}
    for output in (value_of(ppo, obs).sum(), mean_of(ppo, obs).sum()):
        ppo.model.zero_grad()
        output.backward()
        gradient = ppo.policy.encoder.convolutions[0].weight.grad
        assert gradient.abs().sum() > 0


def test_pictures_of_any_size_that_a_config_allows(cfg):
    for shape in ((1, 8, 8), (9, 84, 84), (3, 33, 57)):
        ppo = make_ppo(cfg, shape, channels=(4, 4, 4, 4))
        assert value_of(ppo, {"pixels": torch.zeros(2, *shape, dtype=torch.uint8)}).shape == (2,)


def test_rollout_and_update_on_real_worlds(cfg, real_env):
    torch.manual_seed(0)
    ppo = make_algorithm(cfg, real_env)
    before = {name: value.clone() for name, value in ppo.model.named_parameters()}
    first = real_env.obs["pixels"].clone()
    ppo.collect()
    stored = ppo.rollout.data["pixels"].clone()
    assert (stored.dtype, stored.shape) == (torch.uint8, (16, 4, *SHAPE))
    assert torch.equal(stored[0], first)
    metrics = ppo.update()
    assert all(value.isfinite() for value in metrics.values())
    assert torch.equal(ppo.rollout.data["pixels"], stored)
    moved = [name for name, value in ppo.model.named_parameters() if not torch.equal(value, before[name])]
    assert any("convolutions" in name for name in moved)
    assert {"policy.log_std", "policy.head.0.weight", "critic.head.0.weight"} <= set(moved)


def test_the_ratio_is_one_before_the_first_step(ppo):
    """The loss sees the same policy as the worlds did: nothing on the way to it rounds the pictures."""
    act = ppo.model.act({"pixels": some_pixels(32)}, ppo.model.initial_state(32), torch.randn(32, 1))
    mean, std = ppo.policy.moments_of(ppo.model.encode(act.observation)[0])
    log_prob = torch.distributions.Normal(mean, std).log_prob(act.action).sum(-1)
    torch.testing.assert_close(log_prob, act.log_prob)


def test_export_takes_whole_numbers_and_acts_alike(ppo, cfg, tmp_path):
    policy, spec = ppo.policy, ppo.env.spec
    path, origin = tmp_path / "policy.onnx", Origin("c" * 64, "d" * 64, None, None, None)
    assert export_pixels(cfg, policy, spec, {"pixels": some_pixels(64)}, origin, path) <= 1e-5
    with pytest.raises(UserError, match="cannot be written"):
        export_pixels(cfg, policy, spec, {"pixels": some_pixels(4)}, origin, path / "below.onnx")
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


@pytest.mark.slow
@pytest.mark.parametrize("network", [CNN, PARTS], ids=["cnn", "encoders"])
def test_a_run_continues_bit_for_bit_and_is_judged_like_its_export(tmp_path, network):
    def run(name, *overrides):
        place = [f"experiment.output_dir={tmp_path}", f"experiment.name={name}"]
        main(["--config", CONFIG, *SIZES, *place, *network, *overrides])
        return RunFolder(tmp_path / name)

    whole = run("whole", "algorithm.lr_schedule=constant")
    run("halves", "algorithm.lr_schedule=constant", "training.total_steps=128")
    expected = last_tensors(whole)
    continued = last_tensors(run("halves", "algorithm.lr_schedule=constant"))
    assert "env.pixels.history" in expected
    assert_same_tensors(expected, continued)
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
        ppo = make_algorithm(cfg, env, compiled)
        ppo.collect()
        ppo.advantage(ppo.rollout.data)
        differentiate = compiled_step(ppo._gradients) if compiled else ppo._gradients
        gradients.append(differentiate(ppo.rollout.data.flatten())[0])
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
