"""A task on a physics backend: the env contract, kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import mujoco
import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.physics.base import Physics, PhysicsState
from envs_gpu.random import WorldRandom, draws
from envs_gpu.tasks.base import Episode, Task
from envs_gpu.vec_env import EnvSpec, StepResult, VecEnv


class Clock(NamedTuple):
    """What the random numbers of every world's step come from; drawn inside the compiled pieces."""

    key: Tensor
    counter: Tensor
    step: Tensor

    def episode(self, memory: dict[str, Tensor]) -> Episode:
        return Episode(self.step, memory, draws(*self))


class SimEnv(VecEnv):
    """N worlds of one task.

    Args:
        name: the task's name.
        task: what is observed, rewarded and reset.
        make_physics: builds the backend from the task's compiled scene.
        device: where every tensor lives.
        seed: of the worlds' random numbers.
        first_world: identity of the first world, for ranks of a distributed run.
        compiled: run the task's functions through `torch.compile`.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        make_physics: Callable[[mujoco.MjModel], Physics],
        device: torch.device,
        seed: int = 0,
        first_world: int = 0,
        compiled: bool = False,
    ) -> None:
        self.task = task
        model = task.scene().compile()
        task.bind(model, device)
        self.physics = make_physics(model)
        self._first_world = first_world
        num_envs = self.physics.num_worlds
        self._episode_step = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._episode_return = torch.zeros(num_envs, device=device)
        self._judge, self._begin = self._judge_outcome, self._begin_episodes
        self._start = self._start_states
        if compiled:
            compile_ = functools.partial(torch.compile, dynamic=False, fullgraph=True)
            self._judge, self._start = compile_(self._judge), compile_(self._start)
            self._begin = compile_(self._begin)
        self._random = WorldRandom(seed, num_envs, device, first_world)
        self.spec = _make_spec(
            name, task, model, num_envs, device
        )  # its observations are seen first at the reset
        self.reset(seed)
        self.spec = replace(self.spec, obs_dims={group: value.shape[-1] for group, value in self.obs.items()})

    def reset(self, seed: int) -> TensorDict:
        self._random = WorldRandom(seed, self.num_envs, self.device, self._first_world)
        everyone = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._totals: Tensor | None = None
        self._memory: dict[str, Tensor] = {}
        self.obs = self._restart(everyone, {})
        return self.obs

    def restart(self, mask: Tensor) -> TensorDict:
        """Start the worlds where `mask` `[N]` is true anew, in the middle of their episodes."""
        self.obs = self._restart(mask, dict(self.obs.items()))
        return self.obs

    def place(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Put the worlds where `mask` `[N]` is true into a given state; their episodes' clocks go on."""
        episode = self._episode()
        self.physics.set_state(mask, qpos, qvel)
        begun = self.task.begin(self.physics.state, episode)
        self._memory = {name: _choose(mask, new, episode.memory.get(name)) for name, new in begun.items()}

    @torch.no_grad()
    def step(self, action: Tensor) -> StepResult:
        action = action.clamp(self.task.action_low, self.task.action_high)
        self.physics.step(self.task.control(action), self.task.substeps)
        self._episode_step += 1
        observation, self._memory, reward, terminated, truncated, metrics, totals = self._judge(
            self.physics.state, self._clock(), self._memory, action, self._episode_return
        )
        self._totals = totals if self._totals is None else self._totals + totals
        self._metric_names = tuple(metrics)
        final_obs = self._pack(observation)
        self.obs = final_obs
        done = terminated | truncated
        # On the CPU looking costs nothing and mostly saves the reset; on a GPU it would stall the stream.
        if self.device.type != "cpu" or done.any():
            self.obs = self._restart(done, observation)
        return StepResult(self.obs, reward, terminated, truncated, final_obs, metrics)

    def pop_metrics(self) -> dict[str, float]:
        if self._totals is None:
            return {}
        num_steps, num_episodes, episode_return, episode_length, *sums = self._totals.tolist()
        self._totals = None
        metrics = {name: total / num_steps for name, total in zip(self._metric_names, sums, strict=True)}
        if num_episodes:
            metrics["episode/return"] = episode_return / num_episodes
            metrics["episode/length"] = episode_length / num_episodes
        return metrics | {"episode/count": num_episodes}

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"physics.{name}": value for name, value in self.physics.state_dict().items()}
        state |= {f"random.{name}": value for name, value in self._random.state_dict().items()}
        state["episode_step"] = self._episode_step.clone()
        state["episode_return"] = self._episode_return.clone()
        state |= {f"memory.{name}": value.clone() for name, value in self._memory.items()}
        state |= {f"obs.{group}": value.clone() for group, value in self.obs.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.physics.load_state_dict(_below(state, "physics.", self.device))
        self._random.load_state_dict(_below(state, "random.", self.device))
        self._episode_step.copy_(state["episode_step"])
        self._episode_return.copy_(state["episode_return"])
        self._memory = _below(state, "memory.", self.device)
        self.obs = self._pack(_below(state, "obs.", self.device))

    def close(self) -> None:
        self.physics.close()

    def _clock(self) -> Clock:
        return Clock(self._random.key, self._random.counter, self._episode_step)

    def _episode(self) -> Episode:
        return self._clock().episode(self._memory)

    def _judge_outcome(
        self,
        state: PhysicsState,
        clock: Clock,
        before: dict[str, Tensor],
        action: Tensor,
        episode_return: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Tensor], Tensor]:
        """Everything between the physics step and the reset, in one compiled piece; `before`: the memory."""
        episode = clock.episode(before)
        outcome = self.task.outcome(state, episode, action)
        memory = self.task.remember(state, episode, action)
        observation = self.task.observe(state, episode._replace(memory=memory))
        observation = {name: value.float() for name, value in observation.items()}
        reward = torch.stack(list(outcome.reward.values())).sum(0).float()
        # A world whose simulation blew up ends here and earns nothing; its neighbours never hear of it.
        finite = reward.isfinite()
        for value in observation.values():
            finite = finite & value.isfinite().all(-1)
        observation = {name: value.nan_to_num(0.0, 0.0, 0.0) for name, value in observation.items()}
        reward = torch.where(finite, reward, 0.0)
        terminated = outcome.terminated | ~finite
        episode_return += reward
        truncated = (episode.step >= self.task.max_episode_steps) & ~terminated
        done = terminated | truncated
        metrics = {f"reward/{name}": term.float() for name, term in outcome.reward.items()}
        metrics |= {name: value.float() for name, value in outcome.measures.items()}
        metrics = {name: torch.where(finite, value, 0.0) for name, value in metrics.items()}
        metrics["physics/broken"] = (~finite).float()
        counted = (torch.ones_like(reward), done, episode_return * done, episode.step * done)
        totals = torch.stack([value.double().sum() for value in (*counted, *metrics.values())])
        return observation, memory, reward, terminated, truncated, metrics, totals

    def _restart(self, done: Tensor, last: dict[str, Tensor]) -> TensorDict:
        """Start the worlds where `done` `[N]` is true anew; gives what they see, `last` of the others."""
        self._random.advance(done)
        self._episode_step.masked_fill_(done, 0)
        self._episode_return.masked_fill_(done, 0.0)
        # At the very start there is neither memory nor observation: other inputs, not worth a compilation.
        start, begin = (self._start, self._begin) if last else (self._start_states, self._begin_episodes)
        self.physics.set_state(done, *start(self._clock(), self._memory))
        self._memory, fresh = begin(self.physics.state, self._clock(), self._memory, done, last)
        return self._pack(fresh)

    def _start_states(self, clock: Clock, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.task.initial_state(clock.episode(memory))

    def _begin_episodes(
        self,
        state: PhysicsState,
        clock: Clock,
        before: dict[str, Tensor],
        done: Tensor,
        last: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Memory and observation of everyone after a restart of `done` `[N]`, in one compiled piece."""
        episode = clock.episode(before)
        begun = self.task.begin(state, episode)
        memory = {name: _choose(done, new, before.get(name)) for name, new in begun.items()}
        fresh = self.task.observe(state, episode._replace(memory=memory))
        # The other worlds keep the bits that they had: those do not depend on who else was reset.
        return memory, {name: _choose(done, new.float(), last.get(name)) for name, new in fresh.items()}

    def _pack(self, observation: dict[str, Tensor]) -> TensorDict:
        return TensorDict(observation, batch_size=[self.num_envs], device=self.device)


def _make_spec(
    name: str,
    task: Task,
    model: mujoco.MjModel,
    num_envs: int,
    device: torch.device,
) -> EnvSpec:
    joints = model.actuator_trnid[:, 0]
    return EnvSpec(
        name=name,
        num_envs=num_envs,
        obs_dims={},
        action_dim=len(task.action_low),
        action_low=tuple(task.action_low.tolist()),
        action_high=tuple(task.action_high.tolist()),
        joint_names=tuple(model.joint(joint).name for joint in joints),
        control_hz=1.0 / task.control_dt,
        max_episode_steps=task.max_episode_steps,
        device=device,
    )


def _choose(mask: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    """`new` `[N, ...]` where `mask` `[N]` is true, else `old`, if there is any."""
    return new if old is None else torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def _below(state: dict[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Copies on `device` of what is filed under `prefix`."""
    below = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value.to(device, copy=True) for name, value in below.items()}
