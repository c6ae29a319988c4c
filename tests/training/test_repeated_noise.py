"""How long exploration noise lasts, against the zeta distribution."""

import torch
from scipy import stats

from pi_incubator.training.repeated_noise import EXPONENT, RepeatedNoise

CPU = torch.device("cpu")


def lengths_of(longest, num_worlds=20_000):
    """How many steps the first noise of every world lasts."""
    repeated, random = RepeatedNoise(num_worlds, 2, longest, CPU), torch.Generator().manual_seed(0)

    def noise():
        fresh = torch.randn(num_worlds, 2, generator=random)
        return repeated.next(fresh, torch.randn(num_worlds, generator=random)).clone()

    first, lengths, goes_on = noise(), torch.ones(num_worlds), torch.ones(num_worlds, dtype=torch.bool)
    for _ in range(longest):
        goes_on &= (noise() == first).all(-1)
        lengths += goes_on
    return lengths.int()


def test_lengths_are_distributed_like_a_truncated_zeta_distribution():
    observed = torch.bincount(lengths_of(5), minlength=6)[1:].numpy()
    expected = torch.arange(1, 6, dtype=torch.float64).pow(-EXPONENT).numpy()
    expected *= observed.sum() / expected.sum()
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_a_longest_of_one_makes_every_noise_new():
    assert lengths_of(1, num_worlds=100).eq(1).all()


def test_worlds_end_their_noise_independently():
    assert len(lengths_of(16, num_worlds=100).unique()) > 2


def test_it_continues_from_what_was_saved():
    random = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(8, 2, generator=random), torch.randn(8, generator=random)) for _ in range(20)]
    whole, half = RepeatedNoise(8, 2, 16, CPU), RepeatedNoise(8, 2, 16, CPU)
    expected = [whole.next(*pair).clone() for pair in inputs]
    for pair in inputs[:10]:
        half.next(*pair)
    state = {name: value.clone() for name, value in half.state_dict().items()}
    other = RepeatedNoise(8, 2, 16, CPU)
    other.load_state_dict(state)
    assert torch.equal(
        torch.stack([other.next(*pair).clone() for pair in inputs[10:]]), torch.stack(expected[10:])
    )
