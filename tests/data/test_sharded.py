"""Random numbers that do not depend on how many ranks share the worlds."""

import pytest
import torch

from pi_incubator.data.sharded import ShardedRandom

CPU = torch.device("cpu")
T, N, A = 3, 4, 2


@pytest.fixture
def one_and_two():
    """One rank with two shards, and two ranks with one each."""

    def make(shards):
        return ShardedRandom(7, "noise", shards, CPU)

    return make(range(2)), [make(range(1)), make(range(1, 2))]


def test_two_ranks_draw_the_normal_numbers_of_one(one_and_two):
    together, apart = one_and_two
    for _ in range(2):
        whole = torch.empty(T, N, A)
        together.normal_(whole)
        halves = [torch.empty(T, N // 2, A) for _ in apart]
        for random, half in zip(apart, halves, strict=True):
            random.normal_(half)
        assert torch.equal(whole, torch.cat(halves, 1))
        assert len(whole.unique()) == whole.numel()


def test_two_ranks_draw_the_permutations_of_one(one_and_two):
    together, apart = one_and_two
    for _ in range(2):
        both = together.permutations(9)
        for random, expected in zip(apart, both, strict=True):
            (own,) = random.permutations(9)
            assert torch.equal(own, expected)
            assert own.sort().values.tolist() == list(range(9))
        assert not torch.equal(*both)


def test_two_ranks_draw_the_integers_of_one(one_and_two):
    together, apart = one_and_two
    for _ in range(2):
        both = together.integers(5, 200)
        for random, expected in zip(apart, both, strict=True):
            (own,) = random.integers(5, 200)
            assert torch.equal(own, expected)
            assert own.unique().tolist() == list(range(5))
        assert not torch.equal(*both)


def test_seeds_and_purposes_have_their_own_numbers():
    settings = [(7, "noise"), (8, "noise"), (7, "order"), (77, "noise")]
    drawn = [ShardedRandom(*setting, range(1), CPU).permutations(50)[0] for setting in settings]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(settings)


def test_numbers_continue_where_they_were_saved():
    one, other = (ShardedRandom(seed, "noise", range(2), CPU) for seed in (1, 2))
    one.permutations(5)
    other.load_state_dict(one.state_dict())
    for ours, theirs in zip(one.integers(100, 20), other.integers(100, 20), strict=True):
        assert torch.equal(ours, theirs)
