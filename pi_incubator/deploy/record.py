"""What a policy met in simulation, as a robot would have measured it: to check and to calibrate exports on.

Letters: T steps, N worlds, D width of the readings, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs_gpu.interface import Targets
from envs_gpu.vec_env import VecEnv
from pi_incubator.deploy.graph import sensor_readings
from pi_incubator.deploy.session import Array, Session, action_behind
from pi_incubator.errors import UserError
from pi_incubator.evaluation.acting import as_actor
from pi_incubator.policies.policy import Policy

STEPS_PER_WORLD = 100
"""Few worlds and many steps, so that more of an episode is there than its beginning."""


@dataclass(frozen=True)
class Recording:
    """Readings, and what the policy in torch made of what the env showed it."""

    readings: Array
    """`[T, N, D]`."""
    begins: NDArray[np.bool_]
    """`[T, N]` whether an episode begins with this row."""
    action: Array
    """`[T, N, A]`, within the env's limits."""
    hidden: Array | None = None
    """`[T, N, S]` after the action, of a recurrent policy."""

    @property
    def count(self) -> int:
        """Observations in it."""
        return self.begins.size

    def of_world(self, world: int) -> Recording:
        """What one robot alone has met."""
        one = np.s_[:, world : world + 1]
        hidden = None if self.hidden is None else self.hidden[one]
        return Recording(self.readings[one], self.begins[one], self.action[one], hidden)

    def remembered(self, t: int) -> dict[str, Array]:
        """What a file remembers after step `t`, if it does, `[N, S]` by name."""
        hidden = {} if self.hidden is None else {"hidden": self.hidden[t]}
        return {"last_action": self.action[t]} | hidden


@torch.no_grad()
def record(env: VecEnv, policy: Policy, count: int, seed: int) -> Recording:
    """Run the deterministic `policy` until there are `count` observations or a few more."""
    interface, actor = env.interface(), as_actor(policy, env.num_envs)
    num_worlds = min(env.num_envs, max(1, count // STEPS_PER_WORLD))
    obs, begins = env.reset(seed), torch.ones(env.num_envs, dtype=torch.bool)
    rows: list[tuple[Tensor, ...]] = []
    for _ in range(-(-count // num_worlds)):
        action = actor.act(obs)
        hidden = (actor.state.cpu(),) if policy.state_width else ()
        rows.append((sensor_readings(obs["policy"], interface).cpu(), begins, action.cpu(), *hidden))
        result = env.step(action)
        actor.observe(result)
        obs, begins = result.obs, (result.terminated | result.truncated).cpu()
    return Recording(*(torch.stack(column)[:, :num_worlds].numpy() for column in zip(*rows, strict=True)))


def action_error(session: Session, recording: Recording, targets: Targets) -> float:
    """The largest difference between the file's actions and the policy's, their targets, and hidden states.

    Targets count in their own `Targets.unit`, so that those from 0 to 255 are held to the same share of their
    range as those within ±1.

    What the file remembers is then set to what was recorded. Otherwise every step would also answer to the
    rounding of those before it, and some policies amplify that: a Go1's went from 8e-7 to 2e-4.

    NaN where the file's are not finite.
    """
    worst: list[float] = []
    for t, (readings, begins) in enumerate(zip(recording.readings, recording.begins, strict=True)):
        session.feeds(readings)  # makes room for as many robots
        session.restart(begins)
        got, expected = session.step(readings), recording.action[t]
        worst.append(target_error(got, expected, targets))
        if session.last_action is None:
            acted = action_behind(torch.from_numpy(got), targets).numpy()
            worst.append(remembered_error("last_action", acted, expected, targets))
        for name, recorded in recording.remembered(t).items():
            if (state := session.states.get(f"{name}_in")) is not None:
                worst.append(remembered_error(name, state, recorded, targets))
                state[:] = recorded
    return float(np.max(worst))  # a NaN in any stays one


def target_error(target: Array, action: Array, targets: Targets) -> float:
    """The largest difference of a `target` `[..., A]` from that of `action` `[..., A]`, in `Targets.unit`."""
    wanted = targets.control(torch.from_numpy(action)).numpy()
    return float((np.abs(target - wanted) / targets.unit.numpy()).max())


def remembered_error(name: str, state: Array, recorded: Array, targets: Targets) -> float:
    """The largest difference of what a file remembers as `name` from what was `recorded`.

    Actions that are targets themselves count in `Targets.unit`.
    """
    unit = targets.unit.numpy() if name == "last_action" and targets.are_actions else 1.0
    return float((np.abs(state - recorded) / unit).max())


def check_parity(
    model: bytes, source: str, recording: Recording, targets: Targets, tolerance: float
) -> float:
    """Step the file through `recording`, all worlds at once and the first alone.

    Returns:
        What `action_error` found.

    Raises:
        UserError: it is above `tolerance`, or not a number.
    """
    played = (recording, recording.of_world(0))
    difference = float(np.max([action_error(Session(model, source), part, targets) for part in played]))
    require_within(difference, tolerance, source)
    return difference


def require_within(difference: float, tolerance: float, source: str) -> None:
    """Refuse a file whose actions differ from the policy's by more than `tolerance`, or are not numbers.

    Raises:
        UserError: they do.
    """
    if not difference <= tolerance:
        fix = "do not deploy this file; set deployment.tolerance higher only if you know why they differ"
        problem = f"its actions differ from the policy's by {difference:.3g}, more than {tolerance:.3g}"
        raise UserError(f"{source}: {problem}; {fix}")
