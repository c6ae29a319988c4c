"""Training that feels the rounding of int8 (Jacob et al. 2018), so that a quantized export loses less.

The graph stays in float: weights and the inputs of linear layers are rounded to what 8 bits can say, and
gradients pass as if they had not been. What is saved and exported are the unrounded weights. Rounded is what
`pi_incubator.deploy.precision` rounds, in the same way: linear layers that no measurement enters directly,
with both sides symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from pi_incubator.layers.parts import PartsEncoder

MOMENTUM = 0.01  # of the running range of a layer's inputs
LEAST_SCALE = 1e-8


class FakeQuantizedLinear(nn.Linear):
    """A linear layer that watches the range of its inputs and, once `rounds`, computes as int8 would.

    Both are symmetric around zero; weights have a scale for each output, inputs have one. The parameters
    are those of `layer` and keep their names; the range is no part of the state, because no other network has
    it. It is watched in training mode alone.

    Args:
        layer: to be replaced.
    """

    low: Tensor
    high: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.rounds = False
        device = layer.weight.device
        # Zero is always in the range, so that it stays exact.
        self.register_buffer("low", torch.zeros((), device=device), persistent=False)
        self.register_buffer("high", torch.zeros((), device=device), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self._watch(features.detach())
        if not self.rounds:
            return super().forward(features)
        return functional.linear(self._round_features(features), self._round_weight(), self.bias)

    def _watch(self, features: Tensor) -> None:
        known = self.high > self.low
        for bound, seen in ((self.low, features.min()), (self.high, features.max())):
            bound.copy_(torch.where(known, bound.lerp(seen, MOMENTUM), seen))
        self.low.clamp_(max=0.0)
        self.high.clamp_(min=0.0)

    def _round_features(self, features: Tensor) -> Tensor:
        scale = (torch.maximum(self.high, -self.low) / 127).clamp_min(LEAST_SCALE)
        zero_point = torch.zeros((), dtype=torch.int32, device=scale.device)
        return torch.fake_quantize_per_tensor_affine(features, scale, zero_point, -127, 127)

    def _round_weight(self) -> Tensor:
        scale = (self.weight.detach().abs().amax(1) / 127).clamp_min(LEAST_SCALE)
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(self.weight, scale, zero_point, 0, -127, 127)


def watch_ranges(network: nn.Module) -> list[FakeQuantizedLinear]:
    """Replace the linear layers inside `network` by such that can round; those of measurements stay.

    Returns:
        Those, not rounding yet.
    """
    first = _first_layers(network)
    return [
        _put(parent, name, FakeQuantizedLinear(layer))
        for parent, name, layer in _linear_layers(network)
        if layer not in first
    ]


def make_plain(network: nn.Module) -> None:
    """Undo `watch_ranges`: the same weights in ordinary layers."""
    for parent, name, layer in _linear_layers(network):
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        setattr(parent, name, plain)


def _put(parent: nn.Module, name: str, layer: FakeQuantizedLinear) -> FakeQuantizedLinear:
    setattr(parent, name, layer)
    return layer


def _linear_layers(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield each linear layer with what holds it and under which name."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                yield parent, name, layer


def _first_layers(network: nn.Module) -> set[nn.Linear]:
    """The layers that measurements enter: the first, or the first of each part of the observation."""
    layers = [layer for _, _, layer in _linear_layers(network)]
    first: set[nn.Linear] = set()
    for parts in [module for module in network.modules() if isinstance(module, PartsEncoder)]:
        of_parts = [[layer for _, _, layer in _linear_layers(encoder)] for encoder in parts.encoders]
        first.update(layers[0] for layers in of_parts if layers)
        if not all(of_parts):  # a part that is read as it is enters the layer behind all parts
            inside = {layer for layers in of_parts for layer in layers}
            first.update([layer for layer in layers if layer not in inside][:1])
    return first or set(layers[:1])
