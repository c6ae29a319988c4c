"""What holds for every network that PPO learns with: it acts, learns, and leaves as ONNX.

World models and networks with batch normalization learn with other algorithms, see
tests/algorithms/test_registry_promises.py.
"""

from pathlib import Path

import onnxruntime
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.pixels import PixelOptions
from pi_incubator.config import load_config
from pi_incubator.config.models import NETWORKS
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.registry import networks
from tests.learning import make_algorithm

CONFIG = str(Path(__file__).parents[2] / "configs" / "ppo" / "cartpole_balance.yaml")
SETTINGS = ["network.hidden_sizes=[16]", "env.num_envs=4", "algorithm.horizon=16"]
LEARNING = ["algorithm.minibatch_size=32", "algorithm.num_epochs=2"]
PIXELS = ["network.channels=[4]", "env.pixels={width: 16, height: 16}"]


def of_ppo(name):
    """Whether PPO learns with the network `name`."""
    member = NETWORKS.members[name]
    return not (member.needs_batch_statistics or member.is_world_model)


@pytest.fixture(params=[name for name in networks.names() if of_ppo(name)])
def setting(request):
    pixels = PIXELS if request.param == "cnn" else []
    cfg = load_config(CONFIG, [*SETTINGS, *LEARNING, f"network.name={request.param}", *pixels])
    torch.manual_seed(0)
    options = PixelOptions(**cfg.env.pixels.model_dump()) if cfg.env.pixels else None
    env = make_env("cartpole_balance", num_envs=4, device=torch.device("cpu"), pixels=options)
    yield env, make_algorithm(cfg, env)
    env.close()


def test_an_update_moves_every_weight_and_nothing_else(setting):
    _, ppo = setting
    ppo.collect()
    ppo.advantage(ppo.rollout.data)
    seen = ppo.rollout.data.clone()
    weights = {name: value.clone() for name, value in ppo.model.named_parameters()}
    metrics = ppo.learn(ppo.rollout.data)
    assert all(value.isfinite() for value in metrics.values())
    assert all(torch.equal(value, seen[key]) for key, value in ppo.rollout.data.items(True, True))
    for name, value in ppo.model.named_parameters():
        assert value.isfinite().all()
        assert not torch.equal(value, weights[name]), name


def test_the_first_step_of_an_update_is_with_the_policy_that_acted(setting):
    """No ratio is clipped and no KL divergence seen before a weight has moved."""
    env, ppo = setting
    ppo.collect()
    ppo.advantage(ppo.rollout.data)
    for minibatch in ppo._minibatches(ppo.rollout.data).shuffled(ShardedRandom(0, "", range(1), env.device)):
        *_, kl, clip_fraction = ppo._gradients(minibatch)[1].tolist()
        assert abs(kl) < 1e-5
        assert clip_fraction == 0.0


def test_its_onnx_form_acts_like_it(setting, tmp_path):
    env, ppo = setting
    policy = ppo.policy
    batch, width, path = torch.export.Dim("batch"), policy.state_width, tmp_path / "policy.onnx"
    observation = env.obs[policy.groups[0]].clone()
    state = torch.randn(env.num_envs, width).tanh()
    inputs = {"observation": observation, "hidden": state} if width else {"observation": observation}
    outputs = ["action", "hidden_out"] if width else ["action"]
    torch.onnx.export(
        policy.as_onnx().eval(),
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=({0: batch},) * len(inputs),
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(outputs, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = policy.mean(env.obs, state)
    for ours, theirs in zip(found, expected[: len(outputs)], strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=0, atol=1e-5)
