"""The recurrent state-space model: its categorical states are TorchRL's, and sequences are their steps."""

import pytest
import torch
from torchrl.modules.models.model_based import _straight_through_categorical
from torchrl.objectives.dreamer_v3 import categorical_kl_terms

from pi_incubator.layers.categorical import UNIFORM_SHARE, divergence, mode, probabilities, sample
from pi_incubator.layers.encoder import restarted
from pi_incubator.layers.rssm import RSSMEncoder, SymlogEncoder

T, N, D, A, S, C, K = 7, 5, 4, 2, 6, 3, 4


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return RSSMEncoder(SymlogEncoder((D, 8)), A, S, (C, K), 8).double()


def test_samples_and_their_gradient_are_torchrls(random):
    logits = (3.0 * torch.randn(200, C, K, generator=random)).double().requires_grad_()
    uniform = torch.rand(200, C, generator=random).double()
    ours = sample(logits, uniform)
    theirs = _straight_through_categorical(logits, UNIFORM_SHARE, uniform)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(200, C, K, generator=random).double()
    torch.testing.assert_close(
        *(torch.autograd.grad((weights * one).sum(), logits) for one in (ours, theirs))
    )


def test_samples_have_the_mixed_probabilities(random):
    """Also a class that the logits exclude; each sample is one class, whatever the number is rounded to."""
    logits = torch.tensor([[[0.0, 2.0, -1e4, 1.0]]]).expand(200_000, 1, K)
    one_hot = sample(logits, torch.rand(200_000, 1, generator=random))
    assert torch.equal(one_hot.sum(-1), torch.ones(200_000, 1))
    expected = probabilities(logits[0, 0])
    torch.testing.assert_close(one_hot.mean((0, 1)), expected, rtol=0, atol=3e-3)
    assert expected[2] == pytest.approx(UNIFORM_SHARE / K)
    almost_one = torch.full((1, 1), 1.0 - 2.0**-24)
    assert sample(logits[:1], almost_one).sum() == 1.0
    assert torch.equal(mode(logits[:1]), torch.tensor([[[0.0, 1.0, 0.0, 0.0]]]))


def test_divergences_below_the_free_nats_and_above_are_torchrls(random):
    posterior, prior = (torch.randn(2, 50, C, K, generator=random).double() for _ in range(2))
    ours = [
        divergence(posterior.detach(), prior).clamp_min(1.0).mean(),
        divergence(posterior, prior.detach()).clamp_min(1.0).mean(),
    ]
    theirs = categorical_kl_terms(posterior, prior, free_nats=1.0, unimix=UNIFORM_SHARE)
    torch.testing.assert_close(ours, list(theirs))


def test_a_recorded_sequence_is_what_its_steps_are(encoder, random):
    """With the resets of episodes, from a state that is not zero."""
    observation = torch.randn(T, N, D, generator=random).double()
    action = torch.rand(T, N, A, generator=random).double() * 2.0 - 1.0
    starts = torch.rand(T, N, generator=random) < 0.25
    first = torch.randn(N, S, generator=random).double()
    uniform = torch.rand(T, N, C, generator=random).double()
    with torch.no_grad():
        features, logits, following = encoder.observe(observation, action, first, starts, uniform)
        state = first
        for t in range(T):
            state = restarted(state, starts[t])
            expected = encoder.logits(state, encoder.embed.encode(observation[t]))
            torch.testing.assert_close(logits[t], expected)
            now = torch.cat((state, sample(expected, uniform[t]).flatten(-2)), -1)
            torch.testing.assert_close(features[t], now)
            state = encoder.advance(now, action[t])
            torch.testing.assert_close(following[t], state)
    assert starts[1:].any()
    assert (features[..., :S][starts] == 0.0).all()


def test_the_state_depends_on_the_action_and_lasts_at_first(encoder, random):
    """The update gate begins below a half, so half of a state or more is there after a step."""
    state = torch.randn(1000, S, generator=random).double().tanh()
    features, unchanged = encoder(torch.randn(1000, D, generator=random).double(), state)
    assert torch.equal(unchanged, state)
    actions = [torch.full((1000, A), value).double() for value in (-1.0, 1.0)]
    after = [encoder.advance(features, action) for action in actions]
    assert not torch.allclose(*after)
    assert ((after[0] * state).mean() / state.square().mean()) > 0.5
