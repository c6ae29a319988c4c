"""FlashSAC's residual network (Kim et al. 2026, arXiv 2604.04539), with blocks as of MobileNetV2.

Letters: as in `layers.stacked`; W width of the residual stream.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from pi_incubator.layers.stacked import Moments, Trunk
from pi_incubator.layers.unit_norm import UnitBatchNorm, UnitLinear, UnitRMSNorm


class FlashBlock(nn.Module):
    """Wider inside than outside, beside a connection that skips it.

    Args:
        width: W.
        expansion: width inside, as a multiple of W.
        copies: C; None for a single network.
    """

    def __init__(self, width: int, expansion: int, copies: int | None) -> None:
        super().__init__()
        self.widen = UnitLinear(width, width * expansion, copies)
        self.widened = UnitBatchNorm(width * expansion, copies)
        self.narrow = UnitLinear(width * expansion, width, copies)
        self.narrowed = UnitBatchNorm(width, copies)

    def forward(self, features: Tensor, moments: Moments = None) -> Tensor:
        """`[..., W]` -> the same shape."""
        inside = relu(self.widened(self.widen(features), moments))
        return features + relu(self.narrowed(self.narrow(inside), moments))


class FlashTrunk(Trunk):
    """Inputs -> features of unit root mean square.

    Args:
        num_inputs: D.
        width: W.
        num_blocks: of the residual stream.
        expansion: width inside a block, as a multiple of W.
        copies: C; None for a single network.
    """

    def __init__(
        self, num_inputs: int, width: int, num_blocks: int, expansion: int, copies: int | None = None
    ) -> None:
        super().__init__()
        self.num_features = width
        self.normalize = UnitBatchNorm(num_inputs, copies)
        self.embed = UnitLinear(num_inputs, width, copies)
        self.blocks = nn.ModuleList(FlashBlock(width, expansion, copies) for _ in range(num_blocks))
        self.finish = UnitRMSNorm(width, copies)

    def forward(self, inputs: Tensor, moments: Moments = None) -> Tensor:
        """`[..., D]` -> `[..., W]`."""
        features = self.embed(self.normalize(inputs, moments))
        for block in self.blocks:
            features = block(features, moments)
        return self.finish(features)
