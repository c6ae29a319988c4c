"""How the gates of recurrent layers are initialized."""

from __future__ import annotations

import torch
from torch import Tensor


def chrono_bias(size: int, dependency_steps: int) -> Tensor:
    """Biases `[size]` of gates that keep a state for 1 to `dependency_steps` steps.

    A state that is kept with the weight sigmoid(b) falls to 37 % in about exp(b) steps. So b is the
    logarithm of a uniform number of steps (Tallec and Ollivier 2018, "Can recurrent neural networks warp
    time?", eq. 16).
    With gates that are open half the way a gradient would vanish within a few steps.
    """
    return torch.empty(size).uniform_(1.0, max(dependency_steps - 1.0, 1.0)).log()
