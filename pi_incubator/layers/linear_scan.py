"""Linear recurrences over whole sequences, by the kernel of the returns.

Letters: T steps, N sequences, H units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.lambda_return import lambda_return


def linear_scan(decay: Tensor, drive: Tensor, state: Tensor, starts: Tensor) -> Tensor:
    """`hidden[t] = decay[t] * hidden[t - 1] + drive[t]`, at first from `state`; `[T, N, H]`.

    Where a sequence starts, `hidden[t] = drive[t]`: nothing passes, not even NaN.

    Backwards in time that is a lambda return with lambda = 1: the drive is the reward, the decay the
    discount, a start an episode's end, and the state the value after the last step. Differentiable once, by
    all but the starts.

    Args:
        decay: `[T, N, H]`.
        drive: `[T, N, H]`.
        state: `[N, H]` before the first step.
        starts: `[T, N]` bool.
    """
    shape = drive.shape
    reward, discount = (value.flatten(1).flip(0) for value in (drive, decay))
    # Only its last row counts.
    next_value = torch.cat((torch.zeros_like(reward[1:]), state.reshape(1, -1)))
    terminated = starts.flip(0).unsqueeze(-1).expand(shape).flatten(1)
    return lambda_return(reward, next_value, discount, 1.0, terminated).flip(0).view(shape)
