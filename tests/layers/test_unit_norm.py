"""Unit layers against torch's own layers, in float64."""

import pytest
import torch
from torch.nn import functional

from pi_incubator.layers.batch_norm import MOMENTUM, follow_moments
from pi_incubator.layers.flash import FlashTrunk
from pi_incubator.layers.unit_norm import (
    UnitBatchNorm,
    UnitLinear,
    UnitOutput,
    UnitRMSNorm,
    rescale,
)

C, K, B, D, F = 2, 3, 5, 4, 6
SOUND, UNSOUND = torch.tensor(True), torch.tensor(False)


@pytest.fixture(autouse=True)
def _in_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


def disturb(module):
    """Other parameters than those of the start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


def test_a_linear_layer_of_copies_is_one_layer_beside_the_other():
    layer, inputs = disturb(UnitOutput(D, F, C)), torch.randn(C, K, B, D)
    for copy in range(C):
        expected = functional.linear(inputs[copy], layer.weight[copy], layer.bias[copy])
        torch.testing.assert_close(layer(inputs)[copy], expected)
    single = disturb(UnitLinear(D, F))
    torch.testing.assert_close(single(inputs), functional.linear(inputs, single.weight))
    single = disturb(UnitOutput(D, F))
    torch.testing.assert_close(single(inputs), functional.linear(inputs, single.weight, single.bias))


def test_a_batch_normalization_is_that_of_torch():
    layer, inputs = disturb(UnitBatchNorm(D)), torch.randn(B, D)
    mean, variance = torch.randn(D), torch.rand(D) + 0.5
    layer.mean.copy_(mean)
    layer.variance.copy_(variance)
    expected = functional.batch_norm(inputs, mean, variance, layer.scale, layer.shift, eps=1e-5)
    torch.testing.assert_close(layer(inputs), expected)
    expected = functional.batch_norm(inputs, None, None, layer.scale, layer.shift, training=True, eps=1e-5)
    moments = []
    torch.testing.assert_close(layer(inputs, moments), expected)
    torch.testing.assert_close(moments, [inputs.mean(0), inputs.var(0, correction=0)])
    assert torch.equal(layer.mean, mean)
    layer.follow(*moments, SOUND)
    torch.testing.assert_close(layer.mean, (1 - MOMENTUM) * mean + MOMENTUM * inputs.mean(0))
    torch.testing.assert_close(
        layer.variance, (1 - MOMENTUM) * variance + MOMENTUM * inputs.var(0, correction=0)
    )


def test_copies_and_shards_are_normalized_apart():
    layer, inputs = disturb(UnitBatchNorm(D, C)), torch.randn(C, K, B, D)
    moments = []
    outputs = layer(inputs, moments)
    for copy in range(C):
        for shard in range(K):
            expected = functional.batch_norm(
                inputs[copy, shard], None, None, layer.scale[copy], layer.shift[copy], training=True
            )
            torch.testing.assert_close(outputs[copy, shard], expected)
    torch.testing.assert_close(moments[0], inputs.mean((1, 2)))
    torch.testing.assert_close(moments[1], inputs.var(2, correction=0).mean(1))


def test_a_root_mean_square_normalization_is_that_of_torch():
    layer, inputs = disturb(UnitRMSNorm(D, C)), torch.randn(C, K, B, D)
    for copy in range(C):
        expected = functional.rms_norm(inputs[copy], (D,), layer.scale[copy], eps=1e-6)
        torch.testing.assert_close(layer(inputs)[copy], expected)


def test_parameters_come_back_to_their_norms_if_the_step_was_sound():
    trunk = disturb(FlashTrunk(D, 8, num_blocks=1, expansion=2, copies=C))
    before = [parameter.clone() for parameter in trunk.parameters()]
    rescale(trunk, UNSOUND)
    assert all(torch.equal(*pair) for pair in zip(trunk.parameters(), before, strict=True))
    rescale(trunk, SOUND)
    for name, weight in trunk.named_parameters():
        if name.endswith("weight"):
            torch.testing.assert_close(weight.norm(dim=-1), torch.ones(weight.shape[:-1]))
    torch.testing.assert_close(trunk.finish.scale.norm(dim=-1), torch.full((C,), 8**0.5))
    both = torch.cat((trunk.normalize.scale, trunk.normalize.shift), -1)
    torch.testing.assert_close(both.norm(dim=-1), torch.full((C,), D**0.5))


def test_moments_follow_in_the_order_of_the_layers_if_the_step_was_sound():
    trunk = FlashTrunk(D, 8, num_blocks=2, expansion=2)
    moments = []
    trunk(torch.randn(B, D), moments)
    bad = [torch.full_like(moment, torch.nan) for moment in moments]
    follow_moments(trunk, bad, UNSOUND)
    assert torch.equal(trunk.normalize.mean, torch.zeros(D))
    follow_moments(trunk, moments, SOUND)
    torch.testing.assert_close(trunk.normalize.mean, MOMENTUM * moments[0])
    torch.testing.assert_close(trunk.blocks[1].narrowed.mean, MOMENTUM * moments[-2])


def test_a_trunk_of_copies_is_one_trunk_beside_the_other():
    trunk = disturb(FlashTrunk(D, 8, num_blocks=2, expansion=2, copies=C))
    inputs = torch.randn(C, K, B, D)
    for copy in range(C):
        single = FlashTrunk(D, 8, num_blocks=2, expansion=2)
        single.load_state_dict({name: value[copy] for name, value in trunk.state_dict().items()})
        torch.testing.assert_close(trunk(inputs)[copy], single(inputs[copy]))
        torch.testing.assert_close(trunk(inputs, [])[copy], single(inputs[copy], []))
