"""What walking is rewarded and fined for: pure functions of batched quantities, unweighted.

Letters: N worlds, F feet, J joints. Sources: Rudin et al. 2022, "Learning to Walk in Minutes Using Massively
Parallel Deep Reinforcement Learning", and the velocity tasks of Isaac Lab and mjlab, which descend from it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tracking(command: Tensor, actual: Tensor, std: float | Tensor) -> Tensor:
    """1 where `actual` `[N, D]` is the `command` `[N, D]`, exp(-error² / std²) elsewhere; `[N]`.

    `std` is a number, or `[N]`.
    """
    return (-(command - actual).square().sum(-1) / std**2).exp()


def step_air_time(
    air_time_s: Tensor, contact: Tensor, shortest_s: float | Tensor, longest_s: float | Tensor
) -> Tensor:
    """Sum over the feet that touch down now of their time in the air beyond `shortest_s`; `[N]`, s.

    Args:
        air_time_s: `[N, F]` since the foot last touched the ground; zero on the ground.
        contact: `[N, F]` bool, the foot touches the ground now.
        shortest_s: a swing that earns nothing; shorter ones cost. A number, or `[N, 1]`.
        longest_s: a swing beyond it earns no more. A number, or `[N, 1]`.
    """
    touches_down = contact & (air_time_s > 0)
    return ((air_time_s.clamp(max=longest_s) - shortest_s) * touches_down).sum(-1)


def slip(foot_velocity: Tensor, contact: Tensor) -> Tensor:
    """Sum of the squared horizontal speeds of the feet `[N, F, 3]`, m/s, in `contact` `[N, F]`; `[N]`."""
    return (foot_velocity[..., :2].square().sum(-1) * contact).sum(-1)


def beyond_limits(position: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far joints `[N, J]` are outside `low`, `high` `[J]`, summed; `[N]`, rad."""
    return ((low - position).clamp_min(0) + (position - high).clamp_min(0)).sum(-1)


def mechanical_power(torque: Tensor, velocity: Tensor) -> Tensor:
    """Sum of |torque · velocity| over the joints `[N, J]`: nothing is won back by braking; `[N]`, W."""
    return (torque * velocity).abs().sum(-1)


def next_air_time(air_time_s: Tensor, contact: Tensor, control_dt: float) -> Tensor:
    """`air_time_s` `[N, F]` after a step that ended with `contact` `[N, F]`."""
    return torch.where(contact, 0.0, air_time_s + control_dt)
