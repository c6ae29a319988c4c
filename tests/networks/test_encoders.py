"""Encoders of parts: each reads what the settings say, and features are side by side."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch.nn import functional

from envs_gpu.errors import SettingError
from envs_gpu.make import make_env
from envs_gpu.vec_env import EnvSpec, ObservedTerm
from pi_incubator.cli.train import main
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.config.networks.encoders import EncodersSettings
from pi_incubator.deploy.contract import Origin
from pi_incubator.deploy.pixels import export_pixels
from pi_incubator.deploy.session import ExportedPixels, open_session
from pi_incubator.errors import UserError
from pi_incubator.layers.encoder import observation_of
from pi_incubator.networks import make_network
from pi_incubator.policies.gaussian import GaussianPolicy
from tests.learning import make_algorithm

ROOT = Path(__file__).parents[2]
ROUGH = str(ROOT / "configs" / "ppo" / "go1_velocity_rough_teacher.yaml")
B, ROWS, COLUMNS = 5, 3, 4
SCAN = ObservedTerm("scan", ROWS * COLUMNS, (ROWS, COLUMNS))
SPEC = EnvSpec(
    "toy",
    B,
    {"policy": 6, "critic": 17},
    2,
    (-1.0, -1.0),
    (1.0, 1.0),
    ("a", "b"),
    50.0,
    100,
    torch.device("cpu"),
    pixels_shape=(2, 16, 16),
    terms={
        "policy": (ObservedTerm("angle", 2), ObservedTerm("rate", 1)),  # two observations in a row
        "critic": (ObservedTerm("speed", 3), SCAN, ObservedTerm("contact", 2)),
    },
)


def settings_of(**network):
    return EncodersSettings.model_validate(network)


def observations(seed=0):
    random = torch.Generator().manual_seed(seed)
    obs = {group: torch.randn(B, width, generator=random) for group, width in SPEC.obs_dims.items()}
    obs["pixels"] = torch.randint(0, 256, (B, *SPEC.pixels_shape), dtype=torch.uint8, generator=random)
    return obs


def by_hand(layers, value):
    """Convolutions and linear layers of a part, one after the other, with tanh, by torch's functions."""
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            value = functional.conv2d(value, layer.weight, layer.bias, layer.stride, layer.padding).tanh()
        elif isinstance(layer, torch.nn.Linear):
            value = functional.linear(value.flatten(1), layer.weight, layer.bias)
        elif isinstance(layer, torch.nn.LayerNorm):
            value = functional.layer_norm(value, layer.weight.shape, layer.weight, layer.bias)
        elif isinstance(layer, torch.nn.Tanh) and value.ndim == 2:
            value = value.tanh()
    return value


def test_features_are_those_of_the_parts_side_by_side():
    """A scan in the middle of a group, what is around it, pixels, and a group as it is."""
    torch.manual_seed(0)
    actor = {
        "policy": "identity",
        "pixels": {"name": "cnn", "channels": [4], "hidden_sizes": [7]},
        "critic/scan": {"name": "cnn", "channels": [3, 5], "hidden_sizes": [8, 6]},
        "critic": {"name": "mlp", "hidden_sizes": [9, 4]},
    }
    network, obs = make_network(settings_of(actor=actor), SPEC), observations()
    assert network.actor_groups == ("critic", "pixels", "policy")
    encoder = network.actor_encoder()
    found, _ = encoder(observation_of(obs, network.actor_groups), torch.zeros(B, 0))
    rest, scan, pictures, _ = ([*part.modules()] for part in encoder.encoders)
    expected = [
        by_hand(rest, torch.cat((obs["critic"][:, :3], obs["critic"][:, 15:]), -1)),
        by_hand(scan, obs["critic"][:, 3:15].reshape(B, 1, ROWS, COLUMNS)),
        by_hand(pictures, obs["pixels"].float() / 255 - 0.5),
        obs["policy"],
    ]
    assert [part.shape[-1] for part in expected] == [4, 6, 7, 6]
    torch.testing.assert_close(found, torch.cat(expected, -1))
    assert found.shape == (B, encoder.num_features)
    # Critics read what they name, or the group of the critic.
    assert network.critic_groups == ("critic",)
    assert network.critic_encoder().num_features == 64


def test_a_grid_with_a_history_has_a_channel_for_each_observation():
    spec = replace(SPEC, obs_dims={"policy": 2 * 13}, terms={"policy": (ObservedTerm("x", 1), SCAN)})
    network = make_network(settings_of(actor={"policy/scan": "cnn", "policy/x": "identity"}), spec)
    encoder, rows = network.actor_encoder(), torch.randn(B, 26)
    convolution = encoder.encoders[0].first.convolutions
    seen = []
    convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features, _ = encoder(rows, torch.zeros(B, 0))
    older, newer = rows[:, 1:13], rows[:, 14:]
    assert torch.equal(seen[0], torch.stack((older, newer), 1).unflatten(-1, (ROWS, COLUMNS)))
    assert torch.equal(features[:, -2:], rows[:, [0, 13]])


def test_weights_do_not_depend_on_the_order_of_the_settings():
    actors = {"policy": "mlp", "critic": "mlp"}, {"critic": "mlp", "policy": "mlp"}
    one, other = (make_network(settings_of(actor=actor), SPEC).actor_encoder() for actor in actors)
    other.load_state_dict(one.state_dict())
    obs = observation_of(observations(), ("critic", "policy"))
    assert torch.equal(one(obs, obs.new_zeros(0))[0], other(obs, obs.new_zeros(0))[0])


def test_a_policy_of_several_groups_leaves_as_onnx(tmp_path):
    """Each group is an input of its name; the file acts as the policy does, alone and in batches."""
    torch.manual_seed(0)
    settings = settings_of(actor={"policy": "mlp", "pixels": "cnn"}, state_dependent_std=True)
    policy = GaussianPolicy(settings, make_network(settings, SPEC), SPEC)
    with torch.no_grad():
        policy.head[-1].weight.mul_(50.0)  # a head begins near zero
    policy.normalizer.observe(observations(1))
    policy.normalizer.commit()
    path, obs = tmp_path / "policy.onnx", observations(2)
    seen = {group: obs[group] for group in policy.groups}
    cfg = ExperimentConfig()
    assert export_pixels(cfg, policy, SPEC, seen, Origin("c", "d", None, None, None), path) <= 1e-5
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {node.name: node.type for node in session.get_inputs()}
    assert inputs == {"pixels": "tensor(uint8)", "policy": "tensor(float)"}
    (action,) = session.run(["action"], {name: obs[name].numpy() for name in inputs})
    expected, _ = policy.mean(obs, policy.initial_state(B))
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.from_numpy(action), expected.detach(), rtol=0, atol=1e-5)
    again, _ = ExportedPixels(open_session(path.read_bytes(), "policy.onnx")).mean(obs, torch.zeros(B, 0))
    assert torch.equal(again, torch.from_numpy(action))


def test_a_policy_of_what_no_robot_measures_is_not_exported(tmp_path):
    settings = settings_of(actor={"critic": "mlp", "pixels": "cnn"})
    policy = GaussianPolicy(settings, make_network(settings, SPEC), SPEC)
    path, origin = tmp_path / "policy.onnx", Origin("c", "d", None, None, None)
    with pytest.raises(UserError, match="the group 'critic', which no robot measures"):
        export_pixels(ExperimentConfig(), policy, SPEC, observations(), origin, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("role", "parts", "message"),
    [
        (
            "actor",
            {"polisy": "mlp"},
            "actor.polisy = 'mlp': toy has no observation group 'polisy'; did",
        ),
        (
            "critic",
            {"critic/skan": "cnn"},
            "critic.critic/skan = 'cnn': .* 'skan'; did you mean scan",
        ),
        ("actor", {"critic": "cnn"}, "critic is no grid, .* set it to mlp, and critic/scan to cnn"),
        ("actor", {"critic/speed": "cnn"}, "critic/speed is no grid, for convolutions; set it to mlp"),
        (
            "actor",
            {"policy": "mlp", "policy/angle": "mlp", "policy/rate": "mlp"},
            "actor.policy = 'mlp': all terms of policy have encoders of their own",
        ),
    ],
)
def test_parts_that_the_env_does_not_have_are_named(role, parts, message):
    with pytest.raises(SettingError, match=message) as caught:
        make_network(settings_of(**{role: parts}), SPEC)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.actor.pixels=cnn"], "network.actor.pixels = 'cnn': env.pixels = null draws nothing"),
        (["network.actor.pixels=mlp", "env.pixels={}"], "network.actor.pixels = 'mlp': .* write pixels: cnn"),
        (["env.pixels={}"], "network.name = 'encoders': none of its encoders reads env.pixels; set network"),
        (["network.actor.policy=mpl"], "network.actor.policy.name = 'mpl': .* did you mean mlp"),
        (["network.actor.policy=3"], "network.actor.policy = 3: must be an encoder; write mlp, cnn or"),
        (["network.actor.policy/=mlp"], "network.actor.policy/ = 'mlp': names no part .* write GROUP or"),
        (
            ["network.actor.policy={name: mlp, channels: [4]}"],
            r"network.actor.policy.channels = \[4\]: has no effect with .*name = mlp; remove it",
        ),
        (
            ["network.actor.policy={name: identity, hidden_sizes: [4]}"],
            r"network.actor.policy.hidden_sizes = \[4\]: has no effect with .*name = identity",
        ),
        (
            ["network.state_dependent_std=true", "network.init_log_std=-6"],
            "network.init_log_std = -6.0: with network.state_dependent_std it is limited to -5 to 2",
        ),
        (
            ["algorithm.name=sac", "network.actor.pixels=cnn", "env.pixels={}"],
            "network.name = 'encoders': .* networks with pixels",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(overrides, message, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("network: {name: encoders}")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, overrides)
    assert len(str(caught.value).splitlines()) == 1


def test_a_command_with_a_wrong_group_trains_nothing(tmp_path):
    place = [f"experiment.output_dir={tmp_path}", "experiment.name=wrong", "tracking.backend=none"]
    with pytest.raises(
        ConfigError, match=r"command line: network.actor.ground = 'mlp': .*; name one of policy"
    ):
        main(["--config", ROUGH, *place, "env.num_envs=8", *SMALL, "network.actor.ground=mlp"])
    assert not list((tmp_path / "wrong").glob("checkpoints/*"))


@pytest.fixture(scope="module")
def rough():
    env = make_env("go1_velocity_rough", num_envs=4, device=torch.device("cpu"))
    yield env
    env.close()


def of_rough(env, algorithm, *overrides):
    sizes = ["env.num_envs=4", f"algorithm.name={algorithm}"]
    torch.manual_seed(0)
    return make_algorithm(load_config(ROUGH, [*sizes, *overrides]), env)


SMALL = ["algorithm.horizon=4", "algorithm.minibatch_size=16", "network.hidden_sizes=[8]"]
SCANNED = "network.actor={critic: mlp, critic/height_scan: cnn, policy: mlp}"


def test_a_teacher_sees_the_ground_and_what_the_robot_measures(rough):
    """The scan of the task is found as a grid; all losses that look at observations read every group."""
    extras = ["algorithm.rnd_coef=0.1", "algorithm.symmetry_coef=0.1"]
    ppo = of_rough(rough, "ppo", *SMALL, *extras, SCANNED)
    assert ppo.policy.groups == ppo.model.groups[:2] == ("critic", "policy")
    assert ppo.policy.encoder.encoders[1].first.convolutions[0].weight.shape == (16, 1, 3, 3)
    before = {name: value.clone() for name, value in ppo.model.named_parameters()}
    ppo.collect()
    metrics = ppo.update()
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["loss/symmetry"] > 0
    assert metrics["reward/novelty"] > 0
    assert not [name for name, value in ppo.model.named_parameters() if torch.equal(value, before[name])]
    flat = {group: value.clone() for group, value in rough.obs.items()}
    flat["critic"][:, -77:] += 0.2
    seen, changed = (ppo.policy.encode(obs, torch.zeros(4, 0))[0] for obs in (rough.obs, flat))
    where = (seen != changed).any(0)
    assert torch.equal(where, torch.cat([torch.full((64,), part == 1) for part in range(3)]))


def test_the_reference_of_grpo_reads_every_group(rough):
    """Before the first step it is the policy itself, so it gives the actions the same probabilities."""
    grpo = of_rough(rough, "grpo", *SMALL, "algorithm.kl_coef=0.1", "algorithm.group_size=2", SCANNED)
    grpo.collect()
    data = grpo.rollout.data
    torch.testing.assert_close(grpo._reference_log_prob(data), data["action_log_prob"], rtol=1e-4, atol=1e-4)


def test_critics_of_sac_learn_with_an_encoder_of_their_own(rough):
    sizes = ["algorithm.batch_size=8", "algorithm.learning_starts=8", "algorithm.updates_per_step=0.25"]
    sizes += ["algorithm.buffer_size=64"]
    sac = of_rough(rough, "sac", *sizes, "network.init_log_std=0", SCANNED, "network.critic.critic=mlp")
    encoder = sac.critic_features.encoder
    before = [value.clone() for value in encoder.parameters()]
    for _ in range(4):
        sac.collect()
        sac.update()
    assert before
    assert all(value.isfinite().all() for value in encoder.parameters())
    assert not [old for old, new in zip(before, encoder.parameters(), strict=True) if torch.equal(old, new)]
