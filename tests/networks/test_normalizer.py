"""Observation normalization against numpy's moments."""

import numpy as np
import pytest
import torch
from pi_incubator.networks._normalizer import ObservationNormalizer


def test_moments_are_those_of_everything_seen():
    normalizer = ObservationNormalizer(3, clip=1e9)
    rng = np.random.default_rng(0)
    batches = [rng.normal([5.0, -2.0, 1e3], [1.0, 0.1, 3.0], (size, 3)) for size in (7, 64, 1, 200)]
    for batch in batches:
        for rows in np.array_split(batch, min(3, len(batch))):
            normalizer.gather(torch.tensor(rows, dtype=torch.float32))
        normalizer.commit()
    everything = np.concatenate(batches)
    np.testing.assert_allclose(normalizer.mean.numpy(), everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.std.numpy(), everything.std(0), rtol=1e-3)
    assert normalizer.count.item() == len(everything)


def test_nothing_changes_before_the_commit():
    normalizer = ObservationNormalizer(2, clip=10.0)
    x = torch.randn(50, 2) * 3 + 1
    normalizer.gather(x)
    assert torch.equal(normalizer(x), x.clamp(-10, 10))
    normalizer.commit()
    torch.testing.assert_close(normalizer(x).mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalizer(x).std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_commit_without_data_keeps_every_bit():
    normalizer = ObservationNormalizer(2, clip=10.0)
    normalizer.gather(torch.randn(5, 2))
    normalizer.commit()
    before = {name: value.clone() for name, value in normalizer.state_dict().items()}
    normalizer.commit()
    for name, value in normalizer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("clip", [1.0, 5.0])
def test_outliers_are_clipped(clip):
    assert ObservationNormalizer(1, clip)(torch.tensor([[100.0], [-100.0]])).tolist() == [[clip], [-clip]]


def test_constant_feature_stays_finite():
    normalizer = ObservationNormalizer(1, clip=10.0)
    normalizer.gather(torch.full((10, 1), 7.0))
    normalizer.commit()
    assert normalizer(torch.full((3, 1), 7.0)).abs().max() < 1e-3
