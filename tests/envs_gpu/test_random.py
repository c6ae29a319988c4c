"""Random numbers belong to a world: their distribution, and what they depend on."""

import pytest
import torch
from scipy import stats

from envs_gpu.compiled import compiled
from envs_gpu.random import (
    INITIAL_POSITION,
    INITIAL_VELOCITY,
    OBSERVATION_NOISE,
    RANDOMIZATION,
    Draws,
    WorldRandom,
    stream,
)

CPU = torch.device("cpu")


def test_uniform_is_uniform():
    numbers = WorldRandom(0, 2000, CPU).draws().uniform(0, 10, -2.0, 3.0).flatten()
    assert stats.kstest(numbers.numpy(), "uniform", args=(-2, 5)).pvalue > 0.01


def test_normal_is_normal():
    numbers = WorldRandom(0, 2000, CPU).draws().normal(1, 10).flatten()
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 0.01


def test_lanes_draws_worlds_and_resets_are_uncorrelated():
    random = WorldRandom(3, 20000, CPU)
    first, second = random.draws().uniform("a", 2), random.draws().uniform("b", 2)
    random.advance(torch.ones(20000, dtype=torch.bool))
    third = random.draws().uniform("a", 2)
    columns = torch.cat((first, second, third), dim=1)
    shifted = torch.cat((columns, columns.roll(1, 0)), dim=1)
    off_diagonal = torch.corrcoef(shifted.T) - torch.eye(12)
    assert off_diagonal.abs().max() < 5 / 20000**0.5


def test_a_world_keeps_its_numbers_wherever_it_stands():
    crowd = WorldRandom(5, 64, CPU)
    assert torch.equal(WorldRandom(5, 1, CPU).draws().normal(0, 3), crowd.draws().normal(0, 3)[:1])
    assert torch.equal(
        WorldRandom(5, 8, CPU, first_world=32).draws().normal(0, 3), crowd.draws().normal(0, 3)[32:40]
    )


def test_only_masked_worlds_advance():
    random = WorldRandom(5, 4, CPU)
    before = random.draws().uniform(0, 3)
    random.advance(torch.tensor([True, False, False, True]))
    same = (random.draws().uniform(0, 3) == before).all(-1)
    assert same.tolist() == [False, True, True, False]


def test_every_step_has_its_own_numbers():
    random = WorldRandom(5, 3, CPU)
    steps = torch.stack([random.draws(torch.full((3,), step)).uniform(0, 2) for step in range(1000)])
    assert steps.unique().numel() == steps.numel()
    assert stats.kstest(steps.flatten().numpy(), "uniform").pvalue > 0.01
    again = random.draws(torch.tensor([7, 0, 999])).uniform(0, 2)
    assert torch.equal(again, torch.stack((steps[7, 0], steps[0, 1], steps[999, 2])))


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_state_dict_continues(seed):
    random, other = WorldRandom(seed, 4, CPU), WorldRandom(77, 4, CPU)
    random.advance(torch.tensor([True, False, True, False]))
    other.load_state_dict(random.state_dict())
    assert torch.equal(random.draws().normal(2, 5), other.draws().normal(2, 5))


def test_a_name_is_always_the_same_stream_and_none_of_the_envs_own():
    assert stream("123456789") == 2**32 + 0xCBF43926  # the check value of CRC-32
    assert min(stream(name) for name in ("", "command", "goal")) >= 2**32
    assert max(OBSERVATION_NOISE, RANDOMIZATION, INITIAL_POSITION, INITIAL_VELOCITY) < 2**32


def test_names_are_built_into_compiled_code():
    def draw(block):
        return Draws(block).uniform("command", 3), Draws(block).normal("start_velocity", 2)

    block = WorldRandom(5, 4, CPU).draws().block
    for ours, expected in zip(compiled(draw)(block), draw(block), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-14, atol=1e-14)
