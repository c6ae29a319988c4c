"""Features of windows are those of stepping through them one by one, states and resets included."""

import pytest
import torch

from envs_gpu.make import make_env
from pi_incubator.config import ExperimentConfig
from pi_incubator.layers.encoder import Encoder
from pi_incubator.training.features import Features, samples_of
from tests.envs import record_results
from tests.learning import make_algorithm

N, T, BURN_IN = 6, 5, 4
SAC = {
    "name": "sac",
    "replay": "sequences",
    "horizon": 30,
    "sequence_length": T,
    "burn_in": BURN_IN,
    "batch_size": 8 * T,
    "buffer_size": N * 40,
    "learning_starts": 0,
}


class Leaky(Encoder):
    """An encoder without a faster way than step by step, whose features are not its state."""

    def __init__(self, width):
        super().__init__()
        self.num_features, self.state_width = 3, 2
        self.weight = torch.nn.Parameter(torch.randn(width, 2))

    def forward(self, observation, state):
        state = 0.7 * state + observation @ self.weight
        return torch.cat((state.sin(), observation[:, :1]), -1), state


@pytest.fixture(params=[1, 3])
def collected(request):
    """SAC on a GRU that has collected, with ends of both kinds; and what the worlds gave."""
    torch.manual_seed(0)
    env = make_env("inverted_pendulum", num_envs=N, device=torch.device("cpu"), seed=0)
    results, seen = record_results(env), [env.obs["policy"].clone()]
    sections = {"env": {"name": "inverted_pendulum", "num_envs": N}}
    sections["network"] = {"name": "gru", "hidden_sizes": [8, 8], "normalize_observations": False}
    sac = make_algorithm(
        ExperimentConfig.model_validate(sections | {"algorithm": SAC | {"n_step": request.param}}), env
    )
    with torch.no_grad():
        sac.policy.head[-1].weight.mul_(20.0)  # some fall soon
    sac.collect()
    env._episode_step[:3] = env.spec.max_episode_steps - torch.tensor([1, 3, 5])  # time is up soon
    sac.collect()  # 60 steps: the ring has wrapped around
    seen += [result.obs["policy"] for result in results]
    yield sac, seen, results
    env.close()


def by_hand(encoder, seen, results, state, first, world, count):
    """Features of the observations of `count` steps, and the state after each, stepping from `state`."""
    features, states = [], []
    for t in range(first, first + count):
        if t > first and (results[t - 1].terminated | results[t - 1].truncated)[world]:
            state = torch.zeros_like(state)
        feature, state = encoder(seen[t][world : world + 1], state)
        features.append(feature)
        states.append(state)
    return features, states


def windows(sac, seen):
    """A sample, and when and where each of its windows begins."""
    sample = sac.replay.sample(40 * T)
    history = torch.stack(seen[:-1])  # [60, N, D]
    first = sample["obs.policy"][:, 0]  # [n, D]
    places = [(history == row).all(-1).nonzero()[0].tolist() for row in first]
    return sample, places


def test_the_stored_state_is_that_of_the_policy_that_acted(collected):
    sac, seen, results = collected
    stored, count = sac.replay.state_dict()["state"], len(results)
    assert any(result.terminated.any() for result in results)
    assert any(result.truncated.any() for result in results)
    for world in range(N):
        zero = sac.policy.initial_state(1)
        with torch.no_grad():
            _, states = by_hand(sac.policy.encoder, seen, results, zero, 0, world, count)
        for t in range(count - 39, count):  # those that the ring holds, but the first
            done = (results[t - 1].terminated | results[t - 1].truncated)[world]
            before = torch.zeros(8) if done else states[t - 1][0]
            torch.testing.assert_close(stored[t % 40, world], before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["policy", "critics", "any"])
def test_features_are_those_of_stepping_one_by_one(collected, kind):
    """The policy starts from the stored state and the critics from zeros, both with burn-in and resets.

    The features after a step are computed from the observation and the state that follow this step.
    """
    sac, seen, results = collected
    if kind == "any":
        features = Features(Leaky(seen[0].shape[1]), ("policy",), sac.policy.normalizer, BURN_IN)
    else:
        features = sac.actor_features if kind == "policy" else sac.critic_features
    sample, places = windows(sac, seen)
    assert sample["starts"].any()
    assert sample["truncated"].any()
    with torch.no_grad():
        now = features.now(sample).unflatten(0, (-1, T))
        following = features.following(sample).unflatten(0, (-1, T))
        for i, (first, world) in enumerate(places):
            width = features.encoder.state_width
            state = sample["state"][i : i + 1] if kind == "policy" else torch.zeros(1, width)
            count = sample["obs.policy"].shape[1]
            expected, states = by_hand(features.encoder, seen, results, state, first, world, count)
            for k in range(T):
                place = BURN_IN + k
                torch.testing.assert_close(now[i, k], expected[place][0], rtol=1e-4, atol=1e-5)
                last = place + int(sample["num_steps"][i, k]) - 1
                final = results[first + last].final_obs["policy"][world : world + 1]
                after, _ = features.encoder(final, states[last])
                torch.testing.assert_close(following[i, k], after[0], rtol=1e-4, atol=1e-5)


def test_no_gradient_goes_through_the_burn_in(collected):
    """The gradient is that of the learned steps, begun with the state after the burn-in as a constant."""
    sac, *_ = collected
    sample = sac.replay.sample(8 * T)
    features, encoder = sac.actor_features, sac.policy.encoder
    weights = list(encoder.parameters())
    ours = torch.autograd.grad(features.now(sample).sum(), weights)
    observation, starts = sample["obs.policy"].transpose(0, 1), sample["starts"].transpose(0, 1)
    state = sample["state"]
    for t in range(BURN_IN):
        _, state = encoder(observation[t], torch.where(starts[t, :, None], 0.0, state))
    learned = slice(BURN_IN, BURN_IN + T)
    total = encoder.sequence(observation[learned], state.detach(), starts[learned]).sum()
    for one, other in zip(ours, torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(one, other)


def test_samples_are_the_windows_steps_one_window_after_the_other(collected):
    sac, *_ = collected
    minibatch = sac.minibatch(8 * T)
    samples = samples_of(minibatch)
    assert samples.batch_size == (8 * T,)
    assert samples["noise"].shape == (8 * T, 2, 1)
    for name in ("action", "reward", "valid", "noise"):
        assert torch.equal(samples[name].unflatten(0, (8, T)), minibatch[name])
