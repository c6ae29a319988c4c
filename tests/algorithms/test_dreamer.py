"""DreamerV3: its losses are TorchRL's and the paper's, its model learns, and stored states are renewed."""

from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal
from torchrl.objectives.dreamer_v3 import two_hot_cross_entropy, two_hot_decode

from pi_incubator.config import ConfigError, load_config
from pi_incubator.layers.two_hot import symlog
from pi_incubator.training.latent_rollout import imagine
from tests.envs import StillEnv
from tests.learning import make_algorithm
from tests.off_policy import SPEC, A, D

CONFIG = Path(__file__).parents[2] / "configs" / "dreamer" / "cartpole_swingup.yaml"
T, WINDOWS, N, S = 4, 6, 4, 8
TINY = [
    "env.num_envs=4",
    "network.hidden_sizes=[16]",
    f"network.recurrent_size={S}",
    "network.num_latents=3",
    "network.num_classes=4",
    f"algorithm.sequence_length={T}",
    f"algorithm.batch_size={T * WINDOWS}",
    "algorithm.buffer_size=80",
    "algorithm.imagined_steps=3",
    "algorithm.start_every=2",
    "algorithm.num_bins=21",
]


def steps(random, t):
    """World 0 falls at every third step, world 1 is cut off at every fourth."""
    worlds = torch.arange(N)
    return {
        "obs.policy": torch.randn(N, D, generator=random),
        "next.policy": torch.randn(N, D, generator=random),
        "action": torch.tensor([0.2, -1.0]) + 0.3 * torch.randn(N, A, generator=random),
        "reward": torch.randn(N, generator=random),
        "terminated": (worlds == 0) & (t % 3 == 2),
        "truncated": (worlds == 1) & (t % 4 == 3),
        "valid": torch.ones(N, dtype=torch.bool),
        "state": torch.randn(N, S, generator=random).tanh(),
    }


def make_dreamer(compiled=False):
    """With a full buffer, and heads that are no longer zeros."""
    torch.manual_seed(0)
    dreamer = make_algorithm(load_config(CONFIG, TINY), StillEnv(SPEC), compiled)
    random = torch.Generator().manual_seed(1)
    for t in range(20):
        dreamer.replay.add(steps(random, t))
    with torch.no_grad():
        for head in (dreamer.critic, dreamer.slow_critic, dreamer.predictions.reward):
            head[-1].weight.normal_(std=0.1, generator=random)
            head[-1].bias.copy_(-3.0 * (torch.arange(21) - 10).abs())  # numbers below 100 or so
        dreamer.policy.head[-1].weight.normal_(std=0.1, generator=random)
    return dreamer


@pytest.fixture
def dreamer():
    return make_dreamer()


@pytest.mark.slow
def test_compiled_gradients_are_the_eager_ones(dreamer):
    """Steps of windows and of imagination are compiled. (The optimizer would enlarge small differences.)"""
    minibatch = dreamer.minibatch(T * WINDOWS)
    eager, report = dreamer._gradients(minibatch)
    compiled, compiled_report = make_dreamer(compiled=True)._gradients(minibatch)
    torch.testing.assert_close(compiled_report, report, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)


def test_the_losses_of_policy_and_critic_are_those_of_the_paper(dreamer):
    """Eq. 10 and 11, with TorchRL's two-hot codes and torch's densities, from the same rollouts."""
    minibatch = dreamer.minibatch(T * WINDOWS).double()
    for module in (dreamer.policy, dreamer.predictions, dreamer.critic, dreamer.slow_critic, dreamer.two_hot):
        module.double()
    dreamer.return_scale.limits.copy_(torch.tensor([-3.0, 2.0]))
    starts = torch.randn(WINDOWS * T // 2, dreamer.policy.encoder.num_features).double()
    loss, _, _ = dreamer._learn_behaviour(minibatch, starts)
    noise, uniform = (minibatch[name].transpose(0, 1).flatten(1, 2) for name in ("noise", "uniform"))
    policy, bins = dreamer.policy, dreamer.two_hot.bins
    imagined = imagine(dreamer.latent_step, starts, noise, uniform)
    features = imagined.features
    values = two_hot_decode(dreamer.critic(features), bins).detach()
    rewards = two_hot_decode(dreamer.predictions.reward(features), bins)
    goes_on = dreamer.predictions.goes_on(features).sigmoid().squeeze(-1)
    returns, weight, weights = values[-1], torch.ones(len(starts)), []
    rows = []
    for t in reversed(range(3)):
        mixed = (1.0 - 0.95) * values[t + 1] + 0.95 * returns
        returns = rewards[t + 1] + 0.997 * goes_on[t + 1] * mixed
        rows.insert(0, returns)
    for t in range(3):
        weights.append(weight)
        weight = weight * 0.997 * goes_on[t + 1]
    returns, weights = torch.stack(rows).detach(), torch.stack(weights).detach()
    mean, std = policy.unit_moments(features[:-1])
    density = Independent(Normal(mean, std), 1)
    advantage = (returns - values[:-1]) / 5.0
    actor = -(weights * (density.log_prob(imagined.action) * advantage + 3e-4 * density.entropy())).mean()
    logits = dreamer.critic(features[:-1])
    slow = two_hot_decode(dreamer.slow_critic(features[:-1]), bins)
    critic = sum(two_hot_cross_entropy(logits, target, bins) for target in (returns, slow))
    torch.testing.assert_close(loss, actor + (weights * critic).mean())
    head, critics = list(policy.head.parameters()), list(dreamer.critic.parameters())
    ours = torch.autograd.grad(loss, [*head, *critics])
    theirs = torch.autograd.grad(actor, head) + torch.autograd.grad((weights * critic).mean(), critics)
    torch.testing.assert_close(ours, theirs)


def test_imagination_moves_no_weight_of_the_model(dreamer):
    minibatch = dreamer.minibatch(T * WINDOWS)
    starts = torch.randn(WINDOWS * T // 2, dreamer.policy.encoder.num_features)
    loss, _, _ = dreamer._learn_behaviour(minibatch, starts)
    model = [*dreamer.policy.encoder.parameters(), *dreamer.predictions.parameters()]
    assert all(gradient is None for gradient in torch.autograd.grad(loss, model, allow_unused=True))


def test_rewards_and_ends_are_predicted_after_the_step(dreamer):
    """From the features of the next step, or where an episode or the window ends, from a guess of them."""
    minibatch = dreamer.minibatch(T * WINDOWS)
    recorded, _, _ = dreamer._learn_model(minibatch)
    ended = (minibatch["terminated"] | minibatch["truncated"]).T
    assert ended[:-1].any()
    assert torch.equal(recorded.goes_on, ~ended & (torch.arange(T) < T - 1).unsqueeze(-1))
    for t in range(T - 1):
        later = recorded.goes_on[t]
        assert torch.equal(recorded.arrived[t][later], recorded.features[t + 1][later])
    action = dreamer.policy.to_unit(minibatch["action"]).transpose(0, 1)
    following = dreamer.policy.encoder.advance(recorded.features[-1], action[-1])
    torch.testing.assert_close(recorded.arrived[-1, :, :S], following)
    latent = recorded.arrived[..., S:].unflatten(-1, (3, 4))
    torch.testing.assert_close(latent.sum(-1), torch.ones(T, WINDOWS, 3))


def test_a_step_in_which_the_world_broke_teaches_no_reward_and_no_end(dreamer):
    """Whatever its numbers are, the gradients stay the same."""
    minibatch = dreamer.minibatch(T * WINDOWS)
    minibatch["valid"][0, -1] = False
    gradients = []
    for reward, terminated in ((0.0, False), (1e3, True)):
        minibatch["reward"][0, -1], minibatch["terminated"][0, -1] = reward, terminated
        _, loss, _ = dreamer._learn_model(minibatch)
        gradients.append(torch.autograd.grad(loss, dreamer.weights, allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_steps_before_a_broken_one_are_bootstrapped_with_its_value(dreamer):
    """Whatever reward the broken step got, the critic learns the same from the steps before it."""
    minibatch = dreamer.minibatch(T * WINDOWS)
    minibatch["valid"][0, -1], minibatch["terminated"][0, -1] = False, True
    losses = []
    for reward in (0.0, 1e3):
        minibatch["reward"][0, -1] = reward
        recorded, _, _ = dreamer._learn_model(minibatch)
        losses.append(dreamer._replay_critic_loss(minibatch, recorded))
    assert torch.equal(*losses)


def test_updates_lower_the_loss_of_the_model_on_fixed_windows(dreamer):
    """All terms together, to less than two thirds within 25 updates."""
    minibatch = dreamer.minibatch(T * WINDOWS)
    dreamer.optimizer.lr.fill_(3e-3)
    losses = [float(dreamer._step(minibatch)[:5].sum()) for _ in range(25)]
    assert losses[-1] < 2.0 / 3.0 * losses[0]
    assert int(dreamer.skipped.total) == 0


def test_a_step_moves_every_weight_and_the_slow_critic_by_its_share(dreamer):
    before = [weight.clone() for weight in dreamer.weights]
    slow = [weight.clone() for weight in dreamer.slow_critic.parameters()]
    report = dreamer.step(dreamer.minibatch(T * WINDOWS))
    assert len(report) == len(dreamer.report_names)
    assert report.isfinite().all()
    assert not any(torch.equal(*pair) for pair in zip(before, dreamer.weights, strict=True))
    critic = list(dreamer.critic.parameters())
    for old, new, weight in zip(slow, dreamer.slow_critic.parameters(), critic, strict=True):
        torch.testing.assert_close(new, 0.98 * old + 0.02 * weight)
    assert dreamer.return_scale.limits.ne(0).all()


def test_an_update_renews_the_stored_states_of_its_steps(dreamer):
    """They become those that the model had just then; the states of other steps stay."""
    minibatch = dreamer.minibatch(T * WINDOWS)
    recorded, _, _ = dreamer._learn_model(minibatch)
    before = dreamer.replay._flat["state"].clone()
    dreamer.step(minibatch)
    after, index = dreamer.replay._flat["state"], minibatch["index"]
    states = recorded.features[..., :S].transpose(0, 1).detach()
    last = {int(place): state for place, state in zip(index.flatten(), states.flatten(0, 1), strict=True)}
    for place, state in last.items():
        torch.testing.assert_close(after[place], state)
    others = [place for place in range(len(after)) if place not in last]
    assert torch.equal(after[others], before[others])


def test_the_decoder_is_trained_towards_compressed_observations(dreamer):
    minibatch = dreamer.minibatch(T * WINDOWS)
    recorded, _, terms = dreamer._learn_model(minibatch)
    observation = minibatch["obs.policy"].transpose(0, 1)
    error = dreamer.predictions.observation(recorded.features) - symlog(observation)
    torch.testing.assert_close(terms[0], error.square().sum(-1).mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["algorithm.replay=uniform"],
            "algorithm.replay = 'uniform': has no effect .* needs sequences",
        ),
        (["algorithm.burn_in=4"], "algorithm.burn_in = 4: has no effect with algorithm.name = dreamer"),
        (["algorithm.num_bins=20"], "algorithm.num_bins = 20: must be odd, .* set it to 21"),
        (["algorithm.start_every=64"], "algorithm.start_every = 64: is above algorithm.sequence_length = 32"),
        (["network.name=gru"], "network.name = 'gru': algorithm dreamer learns a world model, .* rssm"),
        (["algorithm.name=sac"], "network.name = 'rssm': it is a world model, .* algorithm.name to dreamer"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CONFIG, settings)
    assert len(str(caught.value).splitlines()) == 1
