"""A task on a physics backend: the env contract, kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import mujoco
import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.actuators import driven_joints
from envs_gpu.compiled import compiled as compile_method
from envs_gpu.dump import Scene, below
from envs_gpu.errors import EnvError
from envs_gpu.goals import ObservedGoals
from envs_gpu.guards import GuardOptions, Guards, OverflowWatch, causes
from envs_gpu.imagination import PHYSICS, Imagination
from envs_gpu.interface import PolicyInterface, Term, check_interface
from envs_gpu.limits import reachable
from envs_gpu.mirror import EnvMirror, joined
from envs_gpu.models import compile_model, model_hashes, naming
from envs_gpu.observation import check_reads, noise_scale
from envs_gpu.parameters import ParameterTable
from envs_gpu.perception import Perception
from envs_gpu.physics.base import Physics, PhysicsState
from envs_gpu.pixels import GROUP as PIXELS
from envs_gpu.pixels import NoPixels
from envs_gpu.random import WorldRandom, draws
from envs_gpu.randomize import Randomization, Randomizer
from envs_gpu.scene.contents import contents_of
from envs_gpu.tasks.base import Episode, Outcome, Task
from envs_gpu.vec_env import EnvSpec, ObservedTerm, StepResult, VecEnv


class Clock(NamedTuple):
    """What every world's random numbers are computed from, inside the compiled functions."""

    key: Tensor
    counter: Tensor
    step: Tensor


class Kept(NamedTuple):
    """What the env keeps of the worlds from step to step, inside the compiled functions."""

    clock: Clock
    parameters: Tensor
    """`[P, N]` task parameters."""
    memory: dict[str, Tensor]
    """The task's, name -> `[N, ...]`."""


class Judgement(NamedTuple):
    """Results of a control step, before any world is restarted."""

    observation: dict[str, Tensor]
    memory: dict[str, Tensor]
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    done: Tensor
    """`[N]` terminated or truncated."""
    broken: Tensor
    """`[N]` bool: the world is broken, see `envs_gpu.guards`."""
    broken_by: Tensor
    """`[N]` bits of `guards.Cause`; zero for a world that is not broken."""
    metrics: dict[str, Tensor]
    totals: Tensor
    """Sums over the worlds: steps, episodes, their returns and lengths, metrics."""
    start: tuple[Tensor, Tensor] | None
    """`[N, nq]`, `[N, nv]` start states of the next episode, meaningful only for worlds that are done; None
    where they are computed only in steps in which a world is done, because that is cheaper."""


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
        guards: how broken worlds are handled.
        make_pixels: draws the worlds of the task's scene as an observation; None draws nothing.
        randomization: what differs between worlds.
        observation_history: how many of its last observations the policy sees in one row, oldest first.
        episode_length_s: simulated seconds after which an episode is cut off; None leaves it to the task.
        task_parameters: task parameters that differ from their defaults, name -> value in all worlds.

    Raises:
        SettingError: the task does not have such a parameter, or it cannot have such a value.
        RandomizationError: the task's model cannot have what `randomization` describes.
        EnvError: the task's observation terms contradict each other, or what it observes.
    """

    can_copy_worlds = True
    _seen: Tensor
    """`[N, H D]` what the policy saw last."""

    def __init__(
        self,
        name: str,
        task: Task,
        make_physics: Callable[[mujoco.MjModel], Physics],
        device: torch.device,
        seed: int = 0,
        first_world: int = 0,
        compiled: bool = False,
        guards: GuardOptions = GuardOptions(),  # noqa: B008 - frozen
        make_pixels: Callable[[mujoco.MjSpec], NoPixels] | None = None,
        randomization: Randomization = Randomization(),  # noqa: B008 - frozen
        observation_history: int = 1,
        episode_length_s: float | None = None,
        task_parameters: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.task, scene = task, task.scene()
        self.compiled_model = self._attach_task(name, scene, device, episode_length_s)
        self.physics = make_physics(self.compiled_model)
        num_envs, dtype = self.physics.num_worlds, self.physics.state.qpos.dtype
        self._parameters = ParameterTable(name, task.parameters, num_envs, dtype, device, task_parameters)
        self._guards = self._make_guards(name, scene, guards, device)
        self._overflow = OverflowWatch(self.physics)
        self._pixels = make_pixels(task.scene()) if make_pixels else NoPixels()
        self._first_world = first_world
        self._episode_step = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._episode_return = torch.zeros(num_envs, device=device)
        self._differ = not randomization.is_off
        self._randomizer = Randomizer(randomization, self.physics, len(task.action_low), task.control_dt)
        terms = task.observation_groups.get("policy")
        scale = noise_scale(terms, device) if terms else None
        self._perception = Perception(randomization.observation_noise, scale, observation_history)
        # None where they are not compiled: uncompiled methods of this env are not kept in it. They would be a
        # reference cycle, and the physics would stay in memory until Python happens to look for cycles.
        self._compiled_judge: Callable[..., Judgement] | None = None
        self._compiled_begin: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]] | None = None
        self._imagination: Imagination | None = None
        self._foresees = compiled or device.type != "cpu"
        self.spec = self._first_observed(_make_spec(name, task, self.compiled_model, num_envs, device), seed)
        if compiled:
            self._compile()

    def _attach_task(
        self, name: str, scene: mujoco.MjSpec, device: torch.device, episode_length_s: float | None
    ) -> mujoco.MjModel:
        """Compile the task's scene and let the task look at it; sets `notes`."""
        task = self.task
        model = compile_model(scene, task.source or f"task {name}")
        self.notes = (str(contents_of(model)), *task.notes) if task.takes_model else task.notes
        with naming(f"task {name}"):
            task.attach(model, device)
        if episode_length_s:
            task.max_episode_steps = max(1, round(episode_length_s / task.control_dt))
        return model

    def _make_guards(
        self, name: str, scene: mujoco.MjSpec, options: GuardOptions, device: torch.device
    ) -> Guards:
        """What finds broken worlds; sets `_limits`, beyond which a world is broken."""
        task, model = self.task, self.compiled_model
        limits = reachable(model, options.energy_margin, task.max_episode_steps * task.control_dt)
        self._limits = limits.to(device, self.physics.state.qpos.dtype)
        return Guards(
            options, self.physics, Scene(name, self.physics.name, task.substeps, scene, model, limits)
        )

    def _first_observed(self, spec: EnvSpec, seed: int) -> EnvSpec:
        """Start the first episodes; gives `spec` with the widths of what is observed of them."""
        self.spec = spec
        self._check_observation()
        self.reset(seed)
        widths = {group: value.shape[-1] for group, value in self.obs.items() if group != PIXELS}
        observed = {
            group: tuple(ObservedTerm(term.name, term.width, term.grid) for term in terms)
            for group, terms in self.task.observation_groups.items()
        }
        return replace(spec, obs_dims=widths, pixels_shape=self._pixels.shape, terms=observed)

    def scene_hashes(self) -> dict[str, str]:
        return model_hashes(self.compiled_model)

    def _compile(self) -> None:
        """Compile the task's functions, after each has run once uncompiled, where errors are easy to read."""
        state, episode = self.physics.state, self._episode()
        action = torch.zeros(self.num_envs, self.spec.action_dim, device=self.device)
        self.task.outcome(state, episode, action)
        _check_memory(self.spec.name, episode.memory, self.task.remember(state, episode, action))
        self._compiled_judge = compile_method(self._judge_outcome)
        self._compiled_begin = compile_method(self._begin_episodes)
        self._randomizer.compile()

    def _check_observation(self) -> None:
        """Check that the task observes what its terms declare, before anything relies on it.

        Raises:
            EnvError: it observes something else.
        """
        random = WorldRandom(0, self.num_envs, self.device)
        episode = Episode.first(random)._replace(parameters=self._parameters.rows())
        state = self.physics.state
        episode = episode._replace(memory=self.task.begin(state, episode))
        groups = self.task.observation_groups
        check_reads(self.spec.name, groups, state, episode)
        observed = {name: value.shape[-1] for name, value in self.task.observe(state, episode).items()}
        declared = {name: sum(term.width for term in terms) for name, terms in groups.items()}
        if groups and observed != declared:
            problem = f"its observe() gives {observed}, its observation() declares {declared}"
            raise EnvError(f"task {self.spec.name}: {problem}; override one of them alone")

    def reset(self, seed: int) -> TensorDict:
        self._random = WorldRandom(seed, self.num_envs, self.device, self._first_world)
        everyone = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._totals: Tensor | None = None
        self._memory: dict[str, Tensor] = {}
        self._guards.forget()
        self.obs = self._restart(everyone, {})
        return self.obs

    def restart(self, mask: Tensor) -> TensorDict:
        """Restart the worlds where `mask` `[N]` is true, in the middle of their episodes."""
        last = {group: value for group, value in self.obs.items() if group != PIXELS}
        self.obs = self._restart(mask.contiguous(), last)
        return self.obs

    def place(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Put the worlds where `mask` `[N]` is true into a given state; their episodes' clocks go on."""
        episode = self._episode()
        self.physics.set_state(mask, qpos, qvel)
        self._pixels.restart(mask, self.physics.state.qpos)
        begun = self.task.begin(self.physics.state, episode)
        self._memory = {name: _choose(mask, new, episode.memory.get(name)) for name, new in begun.items()}

    @torch.no_grad()
    def step(self, action: Tensor) -> StepResult:
        action = action.float().contiguous()  # compiled code relies on it
        given, action = action, action.clamp(self.task.action_low, self.task.action_high)
        ctrl = self.task.control(self._randomizer.before_step(action))
        self._guards.remember(ctrl)
        self.physics.step(ctrl, self.task.substeps)
        judged = (self._compiled_judge or self._judge_outcome)(
            self.physics.state, self._kept(), action, given, self._seen, self._episode_return
        )
        self._memory, self._seen = judged.memory, judged.observation["policy"]
        self._totals = judged.totals if self._totals is None else self._totals + judged.totals
        self._metric_names = tuple(judged.metrics)
        self._pixels.advance(self.physics.state.qpos)
        final_obs = self.obs = self._pack(judged.observation)
        done = judged.done
        # On a CPU this check is free and usually avoids the reset; on a GPU it would wait for the device.
        if restarts := self.device.type != "cpu" or bool(done.any()):
            self._guards.isolate(judged.broken_by, self._episode_step)
            self._rewind(done)
        if self._differ:
            self._randomizer.after_step(done, self._random, self._episode_step)
        if restarts:
            states = judged.start or self._start_states(self._episode())
            self.obs = self._start(done, states, judged.observation)
        return StepResult(
            self.obs,
            judged.reward,
            judged.terminated,
            judged.truncated,
            final_obs,
            judged.metrics,
            judged.broken,
        )

    def pop_metrics(self) -> dict[str, float]:
        self._guards.look()
        if self._totals is None:
            return {}
        num_steps, num_episodes, episode_return, episode_length, *sums = self._totals.tolist()
        self._totals = None
        metrics = {name: total / num_steps for name, total in zip(self._metric_names, sums, strict=True)}
        if num_episodes:
            metrics["episode/return"] = episode_return / num_episodes
            metrics["episode/length"] = episode_length / num_episodes
        return metrics | {"episode/count": num_episodes} | self._overflow.pop()

    def check(self) -> None:
        self._guards.check()

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"physics.{name}": value for name, value in self.physics.state_dict().items()}
        state |= {f"random.{name}": value for name, value in self._random.state_dict().items()}
        state["episode_step"] = self._episode_step.clone()
        state["episode_return"] = self._episode_return.clone()
        state |= {f"randomizer.{name}": value for name, value in self._randomizer.state_dict().items()}
        state |= {f"parameters.{name}": value for name, value in self._parameters.state_dict().items()}
        state |= {f"memory.{name}": value.clone() for name, value in self._memory.items()}
        state |= {f"pixels.{name}": value for name, value in self._pixels.state_dict().items()}
        state |= {f"obs.{group}": value.clone() for group, value in self.obs.items() if group != PIXELS}
        return state

    def copy_worlds(self, source: Tensor) -> None:
        self._restore({name: value[source] for name, value in self.state_dict().items()})
        self._guards.cut()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._restore(state)
        self._guards.forget()

    def _restore(self, state: dict[str, Tensor]) -> None:
        """Put every world into a state of `state_dict`, of this env or of one like it."""
        self.physics.load_state_dict(_below(state, "physics.", self.device))
        self._random.load_state_dict(_below(state, "random.", self.device))
        self._randomizer.load_state_dict(_below(state, "randomizer.", self.device))
        self._parameters.load_state_dict(_below(state, "parameters.", self.device))
        self._episode_step.copy_(state["episode_step"])
        self._episode_return.copy_(state["episode_return"])
        self._memory = _below(state, "memory.", self.device)
        self._pixels.load_state_dict(_below(state, "pixels.", self.device))
        observation = _below(state, "obs.", self.device)
        self._seen = observation["policy"]
        self.obs = self._pack(observation)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self._parameters.rows()

    def set_parameters(self, mask: Tensor | None, values: Mapping[str, float | Tensor]) -> None:
        self._parameters.write(mask, values)

    @property
    def drawn_model(self) -> mujoco.MjModel:
        return self.physics.model

    def interface(self) -> PolicyInterface:
        interface = replace(self.task.interface(), history=self._perception.history)
        width = self.spec.obs_dims["policy"] // interface.history
        if not interface.terms:
            interface = replace(interface, terms=(Term("observation", width),))
        check_interface(self.spec.name, interface, width, self.task)
        return interface

    def mirror(self, groups: Iterable[str]) -> EnvMirror:
        task, found = self.task, {}
        if task.mirror is None:
            return super().mirror(groups)
        for group in groups:
            terms = task.observation_groups.get(group, ())
            mirrors = [term.mirror for term in terms if term.mirror is not None]
            if not mirrors or len(mirrors) < len(terms):
                which = next((f"term {term.name!r}" for term in terms if term.mirror is None), "it")
                raise EnvError(
                    f"{self.spec.name} declares no mirror of the group {group!r}: {which} has none"
                )
            seen = self._perception.history if group == "policy" else 1
            found[group] = joined(mirrors * seen).to(self.device)
        return EnvMirror(found, task.mirror.controls.to(self.device))

    def goals(self, groups: Collection[str]) -> ObservedGoals | None:
        declared, terms = self.task.goals(), self.task.observation_groups
        if declared is None:
            return None
        return ObservedGoals(declared, {group: terms[group] for group in groups})

    def imagination(self) -> Imagination:
        if self._imagination is None:
            task, episode = self.task, self._episode()
            name, model = self.spec.name, self.compiled_model
            imagination = Imagination(name, task, model, episode.memory, self.device)
            rows = imagination.pack(self.physics.state, episode)
            imagination.check(rows)
            self._imagination, self.obs[PHYSICS] = imagination, rows
            self.spec = replace(self.spec, obs_dims=self.spec.obs_dims | {PHYSICS: imagination.width})
        return self._imagination

    def positions(self) -> Tensor:
        return self.physics.state.qpos

    def close(self) -> None:
        self._compiled_judge = self._compiled_begin = None
        self._randomizer.close()
        self.physics.close()
        self._pixels.close()

    def _kept(self) -> Kept:
        clock = Clock(self._random.key, self._random.counter, self._episode_step)
        return Kept(clock, self._parameters.table, self._memory)

    def _episode(self) -> Episode:
        return self._episode_of(self._kept())

    def _episode_of(self, kept: Kept) -> Episode:
        rows = self._parameters.rows(kept.parameters)
        return Episode(kept.clock.step, kept.memory, draws(*kept.clock), rows)

    def _judge_outcome(
        self,
        state: PhysicsState,
        kept: Kept,
        action: Tensor,
        given: Tensor,
        seen: Tensor,
        episode_return: Tensor,
    ) -> Judgement:
        """Everything between the physics step and the reset, as one compiled function.

        `kept` is from before the step, `given` the action before it was clipped, `seen` what the policy saw
        last. Clocks and returns are updated in place.
        """
        kept.clock.step.add_(1)
        episode = self._episode_of(kept)
        outcome = self.task.outcome(state, episode, action)
        remembered = self.task.remember(state, episode, action)
        observed = self._observe(state, episode._replace(memory=remembered))
        # Added one by one: the order in torch.sum depends on the shape, so on the number of worlds.
        reward = functools.reduce(torch.add, outcome.reward.values()).float()
        # The episode of a broken world ends here without reward; the other worlds are not affected.
        broken_by = causes(given, state, reward, observed, self._limits)
        finite = broken_by == 0
        observed, nothing = self._perception.next(observed, seen, episode.random), torch.zeros_like(reward[0])
        observed = {name: _choose(finite, value, nothing) for name, value in observed.items()}
        memory = {name: _choose(finite, new, episode.memory.get(name)) for name, new in remembered.items()}
        reward = torch.where(finite, reward, 0.0)
        episode_return += reward
        terminated, truncated = _ends(outcome, finite, episode.step >= self.task.max_episode_steps)
        done, metrics = terminated | truncated, _metrics(outcome, finite)
        counted = (torch.ones_like(reward), done, episode_return * done, episode.step * done)
        totals = torch.stack([value.double().sum() for value in (*counted, *metrics.values())])
        start = self._start_after(done, kept._replace(memory=memory)) if self._foresees else None
        judged = (reward, terminated, truncated, done, ~finite, broken_by, metrics, totals, start)
        return Judgement(observed, memory, *judged)

    def _observe(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        """Each group, without noise, as float32; the rows of `imagination` as they are."""
        observation = {name: value.float() for name, value in self.task.observe(state, episode).items()}
        return observation | self._rows(state, episode)

    def _start_after(self, done: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
        """The start states of the episodes that follow where `done` `[N]` is true."""
        clock = kept.clock
        next_clock = Clock(clock.key, clock.counter + done, torch.where(done, 0, clock.step))
        return self._start_states(self._episode_of(kept._replace(clock=next_clock)))

    def _restart(self, mask: Tensor, last: dict[str, Tensor]) -> TensorDict:
        """Restart the worlds where `mask` `[N]` is true; returns everyone's observation.

        Worlds that go on keep their observation `last`.
        """
        self._rewind(mask)
        if self._differ:
            self._randomizer.begin(mask, self._random, self._episode_step)
        return self._start(mask, self._start_states(self._episode()), last)

    def _rewind(self, done: Tensor) -> None:
        """Set the clocks of the worlds where `done` `[N]` is true to a new episode."""
        self._random.advance(done)
        self._episode_step.masked_fill_(done, 0)
        self._episode_return.masked_fill_(done, 0.0)

    def _start(self, done: Tensor, states: tuple[Tensor, Tensor], last: dict[str, Tensor]) -> TensorDict:
        """Put the worlds where `done` `[N]` is true into start `states`; returns everyone's observation."""
        self.physics.set_state(done, *states)
        self._pixels.restart(done, self.physics.state.qpos)
        # The first time there is no memory and no observation: other inputs, not worth compiling for.
        begin = self._compiled_begin if last else None
        self._memory, fresh = (begin or self._begin_episodes)(self.physics.state, self._kept(), done, last)
        self._seen = fresh["policy"]
        return self._pack(fresh)

    def _start_states(self, episode: Episode) -> tuple[Tensor, Tensor]:
        return self._randomizer.start(*self.task.initial_state(episode), episode.random)

    def _begin_episodes(
        self,
        state: PhysicsState,
        kept: Kept,
        done: Tensor,
        last: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Everyone's memory and observation after a restart of `done` `[N]`, as one compiled function."""
        episode = self._episode_of(kept)
        begun = self.task.begin(state, episode)
        memory = {name: _choose(done, new, kept.memory.get(name)) for name, new in begun.items()}
        fresh = self.task.observe(state, episode._replace(memory=memory))
        fresh |= self._rows(state, episode._replace(memory=memory))
        # Finite even where a world starts broken; its first step reports that.
        fresh = {name: value.float().nan_to_num(0.0, 0.0, 0.0) for name, value in fresh.items()}
        fresh = self._perception.first(fresh, episode.random)
        # Worlds that were not reset keep exactly what they had, so it does not depend on who was reset.
        fresh = {name: _choose(done, new, last.get(name)) for name, new in fresh.items()}
        return memory, fresh

    def _rows(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        """The group `physics`, once somebody has asked for `imagination`."""
        imagination = self._imagination
        return {} if imagination is None else {PHYSICS: imagination.pack(state, episode)}

    def _pack(self, observation: dict[str, Tensor]) -> TensorDict:
        observation = observation | self._pixels.observation()
        return TensorDict(observation, batch_size=[self.num_envs], device=self.device)


def _make_spec(
    name: str,
    task: Task,
    model: mujoco.MjModel,
    num_envs: int,
    device: torch.device,
) -> EnvSpec:
    return EnvSpec(
        name=name,
        num_envs=num_envs,
        obs_dims={},
        action_dim=len(task.action_low),
        action_low=tuple(task.action_low.tolist()),
        action_high=tuple(task.action_high.tolist()),
        joint_names=driven_joints(model),
        control_hz=1.0 / task.control_dt,
        max_episode_steps=task.max_episode_steps,
        device=device,
    )


def _ends(outcome: Outcome, finite: Tensor, is_over: Tensor) -> tuple[Tensor, Tensor]:
    """Which episodes are terminated and which truncated `[N]`, where `finite` is false for broken worlds and
    `is_over` true where the time is up."""
    terminated = outcome.terminated | ~finite
    truncated = is_over if outcome.truncated is None else is_over | outcome.truncated
    return terminated, truncated & ~terminated


def _metrics(outcome: Outcome, finite: Tensor) -> dict[str, Tensor]:
    """The terms of the reward and what else the task measures, `[N]` each, zero in broken worlds."""
    metrics = {f"reward/{name}": term.float() for name, term in outcome.reward.items()}
    metrics |= {name: value.float() for name, value in outcome.measures.items()}
    metrics = {name: torch.where(finite, value, 0.0) for name, value in metrics.items()}
    return metrics | {"physics/broken": (~finite).float()}


def _choose(mask: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    """`new` `[N, ...]` where `mask` `[N]` is true, else `old`, if there is any; memory of its own."""
    if old is None:
        return new.clone(memory_format=torch.contiguous_format)
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def _check_memory(task: str, begun: dict[str, Tensor], remembered: dict[str, Tensor]) -> None:
    """Check that a step's memory has the layout of a reset's, which compiled code relies on.

    Raises:
        EnvError: it is not.
    """
    kinds = [
        {name: (list(value.shape), value.dtype) for name, value in memory.items()}
        for memory in (begun, remembered)
    ]
    for name in sorted(kinds[0].keys() | kinds[1].keys()):
        first, later = (kind.get(name) for kind in kinds)
        if first != later:
            raise EnvError(
                f"task {task}: memory {name!r} is {_say(first)} after begin and {_say(later)} after "
                "remember; give both the same shape and dtype"
            )


def _say(kind: tuple[list[int], torch.dtype] | None) -> str:
    return "missing" if kind is None else f"{kind[0]} {kind[1]}"


def _below(state: dict[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Copies on `device` of the entries whose names begin with `prefix`, without it."""
    return {name: value.to(device, copy=True) for name, value in below(state, prefix).items()}
