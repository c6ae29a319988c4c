"""Hidden layers with a batch normalization before each (Bhatt et al. 2024, arXiv 1902.05605, appendix A).

Letters: as in `layers.stacked`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from pi_incubator.layers.batch_norm import BatchNorm
from pi_incubator.layers.stacked import Moments, StackedLinear, Trunk


class BatchNormMLP(Trunk):
    """Batch normalization, linear layer and ReLU for each hidden layer, and one more normalization.

    Args:
        sizes: D, then the width of each hidden layer.
        copies: C; None for a single network.
    """

    def __init__(self, sizes: Sequence[int], copies: int | None = None) -> None:
        super().__init__()
        self.num_features = sizes[-1]
        self.norms = nn.ModuleList(BatchNorm(size, copies) for size in sizes)
        self.linears = nn.ModuleList(
            StackedLinear(fan_in, fan_out, copies) for fan_in, fan_out in pairwise(sizes)
        )

    def forward(self, inputs: Tensor, moments: Moments = None) -> Tensor:
        *before, last = self.norms
        for norm, linear in zip(before, self.linears, strict=True):
            inputs = relu(linear(norm(inputs, moments)))
        features: Tensor = last(inputs, moments)
        return features
