"""Imagined rollouts follow policy and model, and returns are scaled as TorchRL does it."""

import torch
from torchrl.modules import PercentileValueNorm

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.networks.rssm import RSSMVectorSettings
from pi_incubator.networks import make_network
from pi_incubator.policies.latent import LatentPolicy
from pi_incubator.training.latent_rollout import RATE, ReturnScale, imagine, make_latent_step, percentiles

CPU = torch.device("cpu")
H, B, A, C = 5, 8, 2, 3
SPEC = EnvSpec("toy", B, {"policy": 4}, A, (-1.0, -3.0), (1.0, 0.5), ("a", "b"), 50.0, 100, CPU)


def test_a_rollout_takes_the_policys_actions_through_the_model():
    torch.manual_seed(0)
    settings = RSSMVectorSettings(recurrent_size=6, num_latents=C, num_classes=4, hidden_sizes=(8,))
    network = make_network(settings, SPEC)
    policy, prior = LatentPolicy(settings, network, SPEC), network.predictions(11).prior
    state = torch.randn(B, 6).tanh()
    first, noise = prior.features(state, torch.rand(B, C)).detach(), 2.0 * torch.randn(H, B, A)
    uniform = torch.rand(H, B, C)
    imagined = imagine(make_latent_step(policy, prior), first, noise, uniform)
    assert torch.equal(imagined.features[0], first)
    assert imagined.action.abs().max() > 1.0
    with torch.no_grad():
        for t in range(H):
            mean, std = policy.unit_moments(imagined.features[t])
            torch.testing.assert_close(imagined.action[t], mean + std * noise[t])
            action = policy.to_env_units(imagined.action[t].clamp(-1.0, 1.0))
            state = policy.state_after(imagined.features[t], state, action)
            torch.testing.assert_close(imagined.features[t + 1], prior.features(state, uniform[t]))


def test_the_scale_of_returns_is_torchrls():
    """Their limits move by the same rate, and small ranges count as 1."""
    random = torch.Generator().manual_seed(0)
    ours, theirs = ReturnScale(CPU), PercentileValueNorm(rate=RATE)
    for factor in (1.0, 1000.0, 300.0):
        returns = factor * torch.randn(H, 201, generator=random)
        ours.follow(percentiles(returns, 1), torch.tensor(True))
        theirs.update(returns.unsqueeze(-1))
        torch.testing.assert_close(ours.scale(), theirs.scale().squeeze())
    assert ours.scale() > 1.0
    assert ReturnScale(CPU).scale() == 1.0


def test_percentiles_of_two_shards_are_the_mean_of_those_of_each():
    returns = torch.randn(H, B, generator=torch.Generator().manual_seed(0))
    both = percentiles(returns, 2)
    each = [percentiles(half, 1) for half in returns.chunk(2, 1)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2.0)


def test_an_update_that_is_not_sound_leaves_the_scale():
    scale = ReturnScale(CPU)
    scale.follow(torch.tensor([torch.nan, torch.nan]), torch.tensor(False))
    assert torch.equal(scale.limits, torch.zeros(2))
