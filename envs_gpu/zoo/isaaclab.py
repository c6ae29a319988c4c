"""Isaac Lab's envs (Mittal et al. 2025), on its own simulator, which starts with the first env.

Isaac Lab resets worlds inside its step and keeps no last observation, so `final_obs` is what the world saw
one control step before its end. A world that broke ends for the learner, but it is
Isaac Lab's to restart. Its simulator's state cannot be saved: a continued run starts fresh episodes.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.guards import Cause
from envs_gpu.vec_env import EnvSpec, StepResult
from envs_gpu.zoo import family
from envs_gpu.zoo._episode_book import EpisodeBook, ZooEnv
from envs_gpu.zoo._family import Family


@family("isaaclab")
class IsaacLab(Family):
    """`isaaclab/Isaac-Ant-v0` and whatever else `isaaclab_tasks` registers."""

    modules = ("isaaclab", "isaaclab_tasks")
    install = "install Isaac Lab: https://isaac-sim.github.io/IsaacLab/main/source/setup/installation"
    on_cuda = True

    def names(self) -> list[str]:
        return []  # they can only be imported once the simulator has started

    def make(self, name: str, num_envs: int, device: torch.device, seed: int, first_world: int) -> ZooEnv:
        from isaaclab.app import AppLauncher

        AppLauncher(headless=True)  # before anything else of Isaac Lab is imported
        import gymnasium
        import isaaclab_tasks  # noqa: F401 - registers the envs
        from isaaclab_tasks.utils import parse_env_cfg

        cfg = parse_env_cfg(name, device=str(device), num_envs=num_envs)
        return IsaacLabEnv(name, gymnasium.make(name, cfg=cfg), device, seed + first_world)


class IsaacLabEnv(ZooEnv):
    """An Isaac Lab env, `ManagerBasedRLEnv` or `DirectRLEnv`: a batch of worlds already.

    Args:
        name: as Isaac Lab registers it.
        env: made, and possibly wrapped by Gymnasium.
        device: where its tensors live.
        seed: of all worlds together.
    """

    def __init__(self, name: str, env: Any, device: torch.device, seed: int) -> None:
        self.env, inner = env, env.unwrapped
        space = inner.single_action_space
        low, high = (tuple(limit.ravel().tolist()) for limit in (space.low, space.high))
        self._low, self._high = (torch.tensor(limit, device=device) for limit in (low, high))
        self.book = EpisodeBook(inner.num_envs, device)
        start = self._start(seed)
        self.spec = EnvSpec(
            name=f"isaaclab/{name}",
            num_envs=inner.num_envs,
            obs_dims={group: value.shape[-1] for group, value in start.items()},
            action_dim=len(low),
            action_low=low,
            action_high=high,
            joint_names=tuple(f"action_{index}" for index in range(len(low))),
            control_hz=1.0 / inner.step_dt,
            max_episode_steps=int(inner.max_episode_length),
            device=device,
        )
        self.obs = self._pack(start)

    def reset(self, seed: int) -> TensorDict:
        self.obs = self._pack(self._start(seed))
        return self.obs

    @torch.no_grad()
    def step(self, action: Tensor) -> StepResult:
        before = self.obs
        obs, reward, terminated, truncated, _ = self.env.step(action.clamp(self._low, self._high))
        reward, groups = reward.float(), _groups(obs)
        causes = _causes(action, reward, groups)
        broken = causes != 0
        reward = reward.masked_fill(broken, 0.0)
        terminated = terminated | broken
        truncated = truncated & ~terminated
        done = terminated | truncated
        self.obs = self._pack({group: value.nan_to_num(0.0, 0.0, 0.0) for group, value in groups.items()})
        final_obs = self.obs.apply(
            lambda new, old: torch.where(done.unsqueeze(-1), old, new), before, batch_size=[self.num_envs]
        )
        metrics = {"reward/total": reward, "physics/broken": broken.float()}
        self.book.add(reward, done, metrics, causes)
        return StepResult(self.obs, reward, terminated, truncated, final_obs, metrics, broken)

    def state_dict(self) -> dict[str, Tensor]:
        return self.book.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Every world starts a fresh episode; see the module's docstring."""
        self.book.clear()

    def close(self) -> None:
        self.env.close()

    def _start(self, seed: int) -> dict[str, Tensor]:
        obs, _ = self.env.reset(seed=seed)
        self.book.clear()
        return _groups(obs)

    def _pack(self, groups: dict[str, Tensor]) -> TensorDict:
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)


def _causes(action: Tensor, reward: Tensor, groups: dict[str, Tensor]) -> Tensor:
    """`[N]` uint8 bits of `Cause`; the state is not at hand."""
    checked = [(Cause.ACTION, action), (Cause.REWARD, reward.unsqueeze(-1))]
    checked += [(Cause.OBSERVATION, value) for value in groups.values()]
    bits = torch.zeros_like(reward, dtype=torch.uint8)
    for cause, value in checked:
        bits |= (~value.isfinite().all(-1)).to(torch.uint8) * int(cause)
    return bits


def _groups(obs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, for Isaac Lab writes the next observation to the same memory."""
    return {group: value.float().clone() for group, value in obs.items()}
