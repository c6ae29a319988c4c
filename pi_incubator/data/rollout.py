"""The rollout: the data of one iteration of on-policy collection, allocated once.

Letters: T horizon (steps per world), N worlds, A actions, D observation width, S state width of the policy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.policies.actor_critic import Decision

_SCALARS = (
    "state_value",
    "valid",
    *(("next", key) for key in ("reward", "terminated", "done", "state_value")),
)


class Rollout:
    """`data` is a TensorDict of batch `[T, N]` with the keys that TorchRL's losses and estimators read.

    Args:
        horizon: T.
        spec: the env's.
        groups: the observation groups to store (normalized).
        state_width: S, of policy and critic.
    """

    def __init__(self, horizon: int, spec: EnvSpec, groups: tuple[str, ...], state_width: int) -> None:
        def buffer(*width: int, dtype: torch.dtype | None = None) -> Tensor:
            return torch.zeros(horizon, spec.num_envs, *width, dtype=dtype, device=spec.device)

        self.horizon = horizon
        transition = {
            "reward": buffer(1),
            "terminated": buffer(1, dtype=torch.bool),
            "done": buffer(1, dtype=torch.bool),
            "state_value": buffer(1),
        }
        # False where the world broke: the step is not learned from.
        valid = torch.ones_like(transition["done"])
        self.data = TensorDict(
            {
                **{name: buffer(*spec.obs_shape(name), dtype=_stored_dtype(spec, name)) for name in groups},
                "action": buffer(spec.action_dim),
                "action_log_prob": buffer(),
                "state_value": buffer(1),
                "valid": valid,
                "next": TensorDict(transition, batch_size=[horizon, spec.num_envs]),
            },
            batch_size=[horizon, spec.num_envs],
            device=spec.device,
        )
        self.noise = buffer(spec.action_dim)
        # The state of policy and critic now, and before the first step: [N, S].
        self.state, self.first_state = torch.zeros(2, spec.num_envs, state_width, device=spec.device)
        if state_width:
            # A TensorDict's entries are all [T, N, ...]. This one is stored once, and expanded over T.
            self.data["state"] = self.first_state.expand(horizon, -1, -1)
        # Indexing a TensorDict costs more than the write: the rows' views are made once, of scalars `[N]`.
        self._rows = [dict(row.items(True, True)) for row in self.data.unbind(0)]
        for row in self._rows:
            row |= {key: row[key].squeeze(-1) for key in _SCALARS}

    def begin(self) -> Tensor:
        """The state `[N, S]` before the first step, which is stored."""
        self.first_state.copy_(self.state)
        return self.state

    def store_decision(self, t: int, decision: Decision) -> None:
        """Write what the policy saw and did at step `t`."""
        row = self._rows[t]
        for group, observation in decision.observation.items():
            row[group].copy_(observation)
        row["action"].copy_(decision.action)
        row["action_log_prob"].copy_(decision.log_prob)
        row["state_value"].copy_(decision.value)

    def store_result(self, t: int, result: StepResult, bootstrap: Callable[[TensorDict], Tensor]) -> None:
        """Write what the env answered at step `t`.

        `bootstrap` gives the value `[N]` of raw observations. It is only asked about `final_obs`, for
        episodes that the clock cut off; the other next values are those of the following step.
        """
        row = self._rows[t]
        row["next", "reward"].copy_(result.reward)
        row["next", "terminated"].copy_(result.terminated)
        torch.logical_or(result.terminated, result.truncated, out=row["next", "done"])
        torch.logical_not(result.broken, out=row["valid"])
        # Looking is free on the CPU, and there truncations are rare; on a GPU it would stall the stream.
        if result.truncated.device.type != "cpu" or result.truncated.any():
            row["next", "state_value"].copy_(bootstrap(result.final_obs))

    def end(self, state: Tensor, last_value: Tensor) -> None:
        """Fill in the next values within episodes.

        Args:
            state: `[N, S]` after the last step.
            last_value: `[N]` value of the observation after it.
        """
        self.state.copy_(state)
        value, done = self.data["state_value"], self.data["next", "done"]
        following = torch.cat((value[1:], last_value[None, :, None]))
        next_value = self.data["next", "state_value"]
        next_value.copy_(torch.where(done, next_value, following))

    def state_dict(self) -> dict[str, Tensor]:
        """What the next rollout begins with beside the env."""
        return {"state": self.state.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        self.state.copy_(state["state"])


def _stored_dtype(spec: EnvSpec, group: str) -> torch.dtype:
    """Pixels stay whole numbers; normalized vectors have the networks' dtype."""
    dtype = spec.obs_dtype(group)
    return torch.get_default_dtype() if dtype.is_floating_point else dtype
