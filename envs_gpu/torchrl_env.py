"""Our env as a TorchRL `EnvBase`, for its collectors, transforms and losses.

Our worlds reset themselves inside the step. TorchRL first wants the true last observation and then asks for
the reset by a mask; both are at hand, so nothing is simulated twice.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from envs_gpu.sim_env import SimEnv


class TorchRLEnv(EnvBase):
    """`env` behind TorchRL's interface, batch `[N]`.

    Keys: the observation groups, `action`, `reward`, `done`, `terminated`, `truncated`; reward and flags
    are `[N, 1]`.
    """

    def __init__(self, env: SimEnv) -> None:
        super().__init__(device=env.device, batch_size=[env.num_envs])
        self.env = env
        spec, shape = env.spec, (env.num_envs, env.spec.action_dim)
        limits = (spec.action_low, spec.action_high)
        low, high = (torch.tensor(limit, device=env.device).expand(shape) for limit in limits)
        self.action_spec = Bounded(low, high, shape=shape, dtype=torch.float32, device=env.device)
        groups = {
            group: Unbounded(shape=(env.num_envs, width), dtype=torch.float32, device=env.device)
            for group, width in spec.obs_dims.items()
        }
        if spec.pixels_shape:
            size = (env.num_envs, *spec.pixels_shape)
            groups["pixels"] = Bounded(0, 255, shape=size, dtype=torch.uint8, device=env.device)
        self.observation_spec = Composite(groups, shape=self.batch_size)
        self.reward_spec = Unbounded(shape=(env.num_envs, 1), dtype=torch.float32, device=env.device)
        flag = Categorical(n=2, shape=(env.num_envs, 1), dtype=torch.bool, device=env.device)
        flags = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=self.batch_size)
        # Worlds that the last step has already started anew.
        self._fresh = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        everyone = torch.ones_like(self._fresh)
        mask = everyone if mask is None else mask.reshape(self.batch_size)
        self.env.restart(mask & ~self._fresh)
        self._fresh = self._fresh & ~mask
        flags = {name: torch.zeros_like(mask).unsqueeze(-1) for name in ("done", "terminated", "truncated")}
        return TensorDict({**self.env.obs.clone(), **flags}, batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        result = self.env.step(tensordict["action"])
        self._fresh = result.terminated | result.truncated
        return TensorDict(
            {
                **result.final_obs.clone(),
                "reward": result.reward.unsqueeze(-1),
                "terminated": result.terminated.unsqueeze(-1),
                "truncated": result.truncated.unsqueeze(-1),
                "done": self._fresh.unsqueeze(-1),
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        self.env.reset(0 if seed is None else seed)
        self._fresh = torch.ones_like(self._fresh)
