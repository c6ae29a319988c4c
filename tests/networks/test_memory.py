"""What holds for every network with a state; what one of them computes is in its own file."""

import numpy as np
import onnxruntime
import pytest
import torch

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ExperimentConfig
from pi_incubator.layers.encoder import Encoder
from pi_incubator.networks import make_network
from tests.envs import StillEnv
from tests.learning import make_algorithm, networks_with_a_state

WITH_STATE = networks_with_a_state()
SMALLER_WINDOW = {"transformer": {"window": 6}}
"""So that steps of a sequence leave it."""
T, N, D = 20, 5, 4


def make_cfg(name, **network):
    settings = {"name": name, "hidden_sizes": [8, 6]} | SMALLER_WINDOW.get(name, {}) | network
    return ExperimentConfig.model_validate({"network": settings})


def make_spec(width=D, num_actions=2):
    limits = ((-1.0,) * num_actions, (1.0,) * num_actions)
    names = tuple(f"joint_{index}" for index in range(num_actions))
    return EnvSpec("toy", N, {"policy": width}, num_actions, *limits, names, 50.0, 100, torch.device("cpu"))


def make_encoder(name, **network):
    torch.manual_seed(0)
    cfg = make_cfg(name, **network)
    return make_network(cfg.network, make_spec()).encoder("policy").double()


def make_sequence(encoder, share):
    """Observations, the state that three steps before left in some worlds, and where episodes start."""
    random = torch.Generator().manual_seed(1)
    observation = torch.randn(T, N, D, generator=random, dtype=torch.float64)
    state = torch.zeros(N, encoder.state_width, dtype=torch.float64)
    with torch.no_grad():
        for before in torch.randn(3, N, D, generator=random, dtype=torch.float64):
            _, state = encoder(before, state)
    state[0] = 0.0
    return observation, state, torch.rand(T, N, generator=random) < share


def depth(name):
    return {} if name in ("gru", "lstm") else {"num_layers": 2}


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0], ids=["no resets", "some", "at every step"])
@pytest.mark.parametrize("name", WITH_STATE)
def test_a_sequence_and_its_gradient_are_those_of_its_steps(name, share):
    """In float64, through resets within the sequence, from a state that is not zero."""
    encoder = make_encoder(name, **depth(name))
    observation, state, starts = make_sequence(encoder, share)
    leaves = [observation.requires_grad_(), *encoder.parameters()]
    results = []
    for sequence in (encoder.sequence, lambda *inputs: Encoder.sequence(encoder, *inputs)):
        features = sequence(observation, state, starts)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2)).double()
        results.append((features, *torch.autograd.grad((features * weights).sum(), leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    with torch.no_grad():
        states = encoder.states(observation, state, starts)
        torch.testing.assert_close(states, Encoder.states(encoder, observation, state, starts))


@pytest.mark.parametrize("name", WITH_STATE)
def test_an_episode_knows_nothing_of_the_one_before(name):
    """Features from an episode's start on are those of a new state, whatever was there before."""
    encoder = make_encoder(name, **depth(name))
    observation, state, starts = make_sequence(encoder, 0.0)
    starts[7] = True
    with torch.no_grad():
        features = encoder.sequence(observation, state, starts)
        after = encoder.sequence(observation[7:], torch.zeros_like(state), starts[7:])
        before = encoder.sequence(observation[1:7], torch.zeros_like(state), starts[1:7])
    torch.testing.assert_close(features[7:], after)
    assert not torch.allclose(features[1:7], before)


@pytest.mark.parametrize("name", WITH_STATE)
def test_nan_ends_with_its_episode(name):
    """Other worlds, earlier steps and the next episode are as without it."""
    encoder = make_encoder(name, **depth(name))
    observation, state, starts = make_sequence(encoder, 0.0)
    starts[8, 1] = True
    poisoned = observation.clone()
    poisoned[5, 1] = torch.nan
    with torch.no_grad():
        clean, found = (encoder.sequence(obs, state, starts) for obs in (observation, poisoned))
        fresh = encoder.sequence(poisoned[8:], torch.zeros_like(state), starts[8:])
    assert found[5:8, 1].isnan().all()
    torch.testing.assert_close(found[8:, 1], fresh[:, 1])
    found[5:8, 1] = clean[5:8, 1]
    torch.testing.assert_close(found, clean)


@pytest.mark.parametrize("name", WITH_STATE)
def test_nan_in_a_state_ends_where_an_episode_starts(name):
    encoder = make_encoder(name, **depth(name))
    observation, state, starts = make_sequence(encoder, 0.0)
    starts[2] = True
    with torch.no_grad():
        clean = encoder.sequence(observation, state, starts)
        found = encoder.sequence(observation, torch.full_like(state, torch.nan), starts)
    torch.testing.assert_close(found[2:], clean[2:], rtol=0, atol=0)


@pytest.mark.parametrize("name", WITH_STATE)
def test_the_past_is_remembered(name):
    """What is seen at one step changes the features of the steps after it."""
    encoder = make_encoder(name)
    observation, state, starts = make_sequence(encoder, 0.0)
    other = observation.clone()
    other[3] += 1.0
    with torch.no_grad():
        difference = encoder.sequence(other, state, starts) - encoder.sequence(observation, state, starts)
    largest = difference.abs().amax((1, 2))
    assert (largest[:3] == 0).all()
    assert (largest[3:8] > 1e-6).all()


@pytest.fixture(params=WITH_STATE)
def exported(request, tmp_path):
    """A policy whose normalizer has seen data, and an onnxruntime session of its step."""
    width = 7
    torch.manual_seed(0)
    cfg = make_cfg(request.param, hidden_sizes=[16, 8])
    policy = make_algorithm(cfg, StillEnv(make_spec(width, 3))).policy
    policy.normalizer.observe({"policy": 3.0 + 2.0 * torch.randn(100, width)})
    policy.normalizer.commit()
    with torch.no_grad():
        policy.head[-1].weight.mul_(1000.0)  # some actions reach the limits
    batch, path = torch.export.Dim("batch"), tmp_path / "policy.onnx"
    torch.onnx.export(
        policy.as_onnx().eval(),
        (torch.zeros(2, width), torch.zeros(2, policy.state_width)),
        path,
        input_names=["observation", "hidden"],
        output_names=["action", "hidden_out"],
        dynamic_shapes=({0: batch}, {0: batch}),
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return policy, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_onnx_acts_alike_for_200_steps_with_resets(exported):
    policy, session = exported
    random, worlds = torch.Generator().manual_seed(1), 3
    state, saturated = policy.initial_state(worlds), False
    hidden = np.zeros(state.shape, np.float32)
    for _ in range(200):
        starts = torch.rand(worlds, generator=random) < 0.05
        hidden[starts.numpy()], state[starts] = 0.0, 0.0
        observation = 3.0 + 2.0 * torch.randn(worlds, 7, generator=random)
        inputs = {"observation": observation.numpy(), "hidden": hidden}
        action, hidden = session.run(["action", "hidden_out"], inputs)
        with torch.no_grad():
            expected, state = policy.mean({"policy": observation}, state)
        torch.testing.assert_close(torch.from_numpy(action), expected, rtol=0, atol=1e-4)
        saturated |= bool((abs(action) == 1.0).any())
    torch.testing.assert_close(torch.from_numpy(hidden), state, rtol=0, atol=1e-4)
    assert saturated
