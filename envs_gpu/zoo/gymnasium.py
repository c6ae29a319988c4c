"""The envs of Gymnasium, as their authors wrote them, one Python object a world.

Observations are boxes of numbers; actions are boxes of numbers, or one of a number of choices.
Slower than our own tasks of the same name, which step all worlds at once; for envs that have none.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.guards import Cause
from envs_gpu.registry import UnknownNameError
from envs_gpu.render import RenderError
from envs_gpu.vec_env import EnvSpec, StepResult
from envs_gpu.zoo import ZooError, family
from envs_gpu.zoo._episode_book import EpisodeBook, ZooEnv
from envs_gpu.zoo._family import Family

MAX_EPISODE_STEPS = 1000  # of an env that states none
RGB_ARRAY = "rgb_array"
NUMBERS_ALONE = "gymnasium.envs.classic_control."
"""Modules of envs whose state is in attributes that are numbers."""

log = logging.getLogger(__name__)


@family("gymnasium")
class Gymnasium(Family):
    """`gymnasium/Ant-v5`, `gymnasium/Pendulum-v1` and whatever else is registered with Gymnasium.

    `gymnasium/MODULE:NAME` imports MODULE first, which registers an env of one's own.
    """

    modules = ("gymnasium",)
    install = "pip install -e ."
    on_cuda = False

    def names(self) -> list[str]:
        import gymnasium

        return sorted(gymnasium.registry)

    def check_name(self, name: str) -> None:
        module, colon, env_id = name.partition(":")
        if not colon:
            super().check_name(name)
            return
        _import(module)
        try:
            super().check_name(env_id)
        except UnknownNameError as error:
            known = [f"{module}:{one}" for one in error.known]
            raise UnknownNameError("env", name, known) from None

    def make(self, name: str, num_envs: int, device: torch.device, seed: int, first_world: int) -> ZooEnv:
        import gymnasium

        module, colon, env_id = name.rpartition(":")
        if colon:
            _import(module)
        try:
            mode = _render_mode(env_id)
            worlds = [_make_world(env_id, mode) for _ in range(num_envs)]
        # An env of Gymnasium may need a package that is not here, or be retired.
        except (ImportError, gymnasium.error.Error) as error:
            raise ZooError(" ".join(str(error).split()), "install what it needs, or name another") from error
        low, high, num_choices = _limits(worlds[0])
        if num_choices is None and not np.isfinite((low, high)).all():
            log.warning("%s: its actions have no limits; those of the policy pass unclipped", name)
        limit = gymnasium.spec(env_id).max_episode_steps
        spec = EnvSpec(
            name=f"gymnasium/{name}",
            num_envs=num_envs,
            obs_dims={"policy": int(np.prod(worlds[0].observation_space.shape))},
            action_dim=len(low),
            action_low=low,
            action_high=high,
            joint_names=tuple(f"action_{index}" for index in range(len(low))),
            control_hz=_control_hz(worlds[0].unwrapped),
            max_episode_steps=limit or MAX_EPISODE_STEPS,
            device=device,
            num_choices=num_choices,
        )
        return GymnasiumEnv(worlds, spec, seed, first_world)


class GymnasiumEnv(ZooEnv):
    """Worlds that are Python objects, stepped one after the other: two threads measured slower than one.

    The clock is ours: a world that is done is reset after its last observation was taken.
    """

    def __init__(self, worlds: list[Any], spec: EnvSpec, seed: int, first_world: int) -> None:
        self.worlds, self.spec = worlds, spec
        self._first_world = first_world
        self._low, self._high = (torch.tensor(limit) for limit in (spec.action_low, spec.action_high))
        self.book = EpisodeBook(spec.num_envs, spec.device)
        self.reset(seed)

    def reset(self, seed: int) -> TensorDict:
        identities = range(self._first_world, self._first_world + self.num_envs)
        seeds = [int(np.random.SeedSequence([seed, world]).generate_state(1)[0]) for world in identities]
        starts = [world.reset(seed=own)[0] for world, own in zip(self.worlds, seeds, strict=True)]
        self.book.clear()
        self.obs = self._pack(torch.from_numpy(np.stack([np.ravel(start) for start in starts])).float())
        return self.obs

    @torch.no_grad()
    def step(self, action: Tensor) -> StepResult:
        given, actions = action.numpy(), action.clamp(self._low, self._high).numpy()
        num_envs, width = self.num_envs, self.spec.obs_dims["policy"]
        final = np.zeros((num_envs, width), np.float32)
        obs = np.zeros((num_envs, width), np.float32)
        reward = np.zeros(num_envs, np.float32)
        flags = np.zeros((2, num_envs), bool)  # terminated, truncated
        causes = np.zeros(num_envs, np.uint8)
        terms: list[dict[str, float]] = [{}] * num_envs
        out_of_time = (self.book.length + 1 >= self.spec.max_episode_steps).numpy()

        for index, world in enumerate(self.worlds):
            observation, reward[index], ends, is_cut, info = world.step(self._own(actions[index]))
            final[index] = np.ravel(observation)
            causes[index] = _causes(given[index], reward[index], final[index])
            ends = ends or causes[index] != 0
            flags[:, index] = ends, (is_cut or out_of_time[index]) and not ends
            terms[index] = _reward_terms(info)
            obs[index] = np.ravel(world.reset()[0]) if flags[:, index].any() else final[index]
        terminated, truncated = torch.from_numpy(flags).unbind()
        broken = torch.from_numpy(causes) != 0
        rewards = torch.from_numpy(reward).masked_fill_(broken, 0.0)
        metrics = {
            name: torch.tensor([float(term.get(name, 0.0)) for term in terms]).masked_fill_(broken, 0.0)
            for name in sorted({name for term in terms for name in term})
        }
        metrics["physics/broken"] = broken.float()
        self.book.add(rewards, terminated | truncated, metrics, torch.from_numpy(causes))
        final_obs = self._pack(torch.from_numpy(final).masked_fill_(broken.unsqueeze(-1), 0.0))
        self.obs = self._pack(torch.from_numpy(obs))
        return StepResult(self.obs, rewards, terminated, truncated, final_obs, metrics, broken)

    @property
    def drawn_model(self) -> Any:
        return _model_of(self.worlds[0])

    @property
    def draws_itself(self) -> bool:
        return self.worlds[0].render_mode == RGB_ARRAY

    def pictures(self, num_worlds: int) -> list[NDArray[np.uint8]]:
        try:
            pictures = [np.asarray(world.render()) for world in self.worlds[:num_worlds]]
        except Exception as error:  # whatever the env's author or a missing package raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RenderError(f"{self.spec.name} does not draw itself ({reason})") from error
        for picture in pictures:
            if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
                problem = f"draws {list(picture.shape)} {picture.dtype}, not [H, W, 3] uint8"
                raise RenderError(f"{self.spec.name} {problem}")
        return pictures

    def positions(self) -> Tensor:
        return torch.from_numpy(np.stack([world.unwrapped.data.qpos for world in self.worlds]))

    def state_dict(self) -> dict[str, Tensor]:
        """Numbers only. What a world keeps in objects of its own (none of Gymnasium's do) is not among it."""
        columns = [_numbers(world) for world in self.worlds]
        state = {name: torch.from_numpy(np.stack([one[name] for one in columns])) for name in columns[0]}
        return state | {"obs.policy": self.obs["policy"].clone()} | self.book.state_dict()

    @property
    def can_copy_worlds(self) -> bool:  # type: ignore[override]
        """Of MuJoCo and classic control: other envs may keep more than numbers, which nothing here knows."""
        inner = self.worlds[0].unwrapped
        return _has_data(inner) or type(inner).__module__.startswith(NUMBERS_ALONE)

    def copy_worlds(self, source: Tensor) -> None:
        if not self.can_copy_worlds:
            super().copy_worlds(source)
        self.load_state_dict({name: value[source] for name, value in self.state_dict().items()})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for index, world in enumerate(self.worlds):
            _restore(world, {name: value[index].numpy() for name, value in state.items()})
        self.book.load_state_dict(state)
        self.obs = self._pack(state["obs.policy"].clone())

    def close(self) -> None:
        for world in self.worlds:
            world.close()

    def _own(self, action: np.ndarray) -> Any:
        """An action `[A]` as the worlds take it; a number that is not finite is the first choice."""
        space = self.worlds[0].action_space
        if self.spec.num_choices is None:
            return action.reshape(space.shape)
        return int(space.start) + round(float(np.nan_to_num(action[0])))

    def _pack(self, obs: Tensor) -> TensorDict:
        return TensorDict({"policy": obs}, batch_size=[self.num_envs], device=self.device)


def _import(module: str) -> None:
    """Import the module that registers an env.

    Raises:
        ZooError: it cannot be imported.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever its code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        problem = f"its module {module!r} cannot be imported ({reason})"
        raise ZooError(problem, "add the module's folder to PYTHONPATH, or mend it") from error


def _make_world(name: str, render_mode: str | None = None) -> Any:
    import gymnasium

    # Without their clock, which would count on through a restored state.
    options: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True}
    if render_mode:  # an env that never draws may not take the argument
        options["render_mode"] = render_mode
    return gymnasium.make(name, **options)


def _render_mode(name: str) -> str | None:
    """`rgb_array` for an env that draws itself and has no MuJoCo model to be drawn by."""
    world = _make_world(name)
    draws = _model_of(world) is None and RGB_ARRAY in (world.metadata.get("render_modes") or ())
    world.close()
    return RGB_ARRAY if draws else None


def _model_of(world: Any) -> mujoco.MjModel | None:
    model = getattr(world.unwrapped, "model", None)
    return model if isinstance(model, mujoco.MjModel) else None


def _limits(world: Any) -> tuple[tuple[float, ...], tuple[float, ...], int | None]:
    """The limits of the actions `[A]`, and the number of choices where they are discrete.

    Raises:
        ZooError: a policy here cannot handle what the env is given or gives.
    """
    from gymnasium.spaces import Box, Discrete

    action, observation = world.action_space, world.observation_space
    if not isinstance(action, (Box, Discrete)) or not isinstance(observation, Box):
        problem = (
            f"acts on {action} and observes {observation}; it must observe a box of numbers, and act on "
        )
        problem += "one or on a number of choices"
        raise ZooError(problem, "choose another env")
    if isinstance(action, Discrete):
        return (0.0,), (float(action.n - 1),), int(action.n)
    return tuple(action.low.ravel().tolist()), tuple(action.high.ravel().tolist()), None


def _causes(action: np.ndarray, reward: float, observation: np.ndarray) -> int:
    """Bits of `Cause`, zero where one world's step is made of finite numbers."""
    checked = ((Cause.ACTION, action), (Cause.REWARD, reward), (Cause.OBSERVATION, observation))
    return sum(int(cause) for cause, value in checked if not np.isfinite(value).all())


def _control_hz(inner: Any) -> float:
    """Actions per simulated second; of an env that does not say, the pictures per second that it draws."""
    dt = getattr(inner, "dt", None)
    return 1.0 / dt if dt else float(inner.metadata.get("render_fps") or 1)


def _reward_terms(info: dict[str, Any]) -> dict[str, float]:
    """`reward_forward` of a MuJoCo env's info -> `reward/forward`."""
    return {f"reward/{name[7:]}": value for name, value in info.items() if name.startswith("reward_")}


def _numbers(world: Any) -> dict[str, np.ndarray]:
    """The state of one world: random generator, attributes, and all of MuJoCo's data of fixed size."""
    inner = world.unwrapped
    generator = inner.np_random.bit_generator.state
    halves = [word >> shift & (2**64 - 1) for word in generator["state"].values() for shift in (0, 64)]
    words = np.array([*halves, generator["has_uint32"], generator["uinteger"]], np.uint64)
    numbers = {"random": words.view(np.int64)}
    numbers |= {f"attribute.{name}": np.array(value) for name, value in _attributes(inner).items()}
    if _has_data(inner):
        numbers |= {f"data.{name}": np.array(value) for name, value in _fields(inner).items()}
    return numbers


def _restore(world: Any, numbers: dict[str, np.ndarray]) -> None:
    inner = world.unwrapped
    *halves, has_uint32, uinteger = map(int, numbers["random"].view(np.uint64))
    state, inc = (low | high << 64 for low, high in zip(halves[::2], halves[1::2], strict=True))
    inner.np_random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": inc},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    now = _attributes(inner)
    for key, saved in numbers.items():
        prefix, _, name = key.partition(".")
        if prefix == "attribute":  # an env may make some of its attributes at its first step
            value = now.get(name, saved if saved.ndim else saved.item())
            setattr(inner, name, saved.copy() if isinstance(value, np.ndarray) else type(value)(saved))
    if _has_data(inner):
        for name, value in _fields(inner).items():
            saved = numbers[f"data.{name}"]
            if isinstance(value, np.ndarray):
                value[...] = saved
            else:
                inner.data.time = float(saved)


def _has_data(inner: Any) -> bool:
    """Whether the state is in MuJoCo's data."""
    return isinstance(getattr(inner, "data", None), mujoco.MjData)


def _attributes(inner: Any) -> dict[str, Any]:
    kinds = (bool, int, float, np.ndarray, np.number)
    return {
        name: value
        for name, value in vars(inner).items()
        if isinstance(value, kinds) and np.asarray(value).dtype.kind in "bif"
    }


def _fields(inner: Any) -> dict[str, Any]:
    """MuJoCo's arrays of `inner` that have the same size in every state, and the time."""
    data, empty = inner.data, type(inner.data)(inner.model)  # without contacts, what varies in size is empty
    names = [name for name in dir(empty) if not name.startswith("_") and name != "contact"]
    fixed = {name: getattr(data, name) for name in names if _is_numeric(getattr(empty, name))}
    return fixed | {"time": data.time}


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size > 0 and value.dtype.kind in "bif"
