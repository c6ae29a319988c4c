"""Envs written in JAX: step, clock and the reset of the worlds that are done, in one jitted function.

The envs of brax and of MuJoCo Playground share an interface: `reset(key)` and `step(state, action)` of one
world give a state, a pytree with `obs`, `reward`, `done` and `metrics`. Their own auto-reset wrappers return
a world to the first state that it ever had, or reset all worlds at once; here every episode of every world
draws a start of its own.

Letters: N worlds, A actions, D observation width, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu import bridge
from envs_gpu.guards import Cause
from envs_gpu.vec_env import EnvSpec, StepResult
from envs_gpu.zoo import ZooError
from envs_gpu.zoo._episode_book import EpisodeBook, ZooEnv

# How Playground names its groups, and how the contract here does.
GROUPS = {"state": "policy", "privileged_state": "critic"}


class Carry(NamedTuple):
    """What one call hands to the next."""

    state: Any
    """The family's own state of all worlds."""
    key: jax.Array
    """`[N, 2]` a world's key: it depends on the seed and the world's identity only."""
    episode: jax.Array
    """`[N]` which episode this is, so that each has random numbers of its own."""
    step: jax.Array
    """`[N]` control steps since its start."""


class Given(NamedTuple):
    """What one step gave."""

    obs: dict[str, jax.Array]
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_obs: dict[str, jax.Array]
    metrics: jax.Array
    """`[M, N]`, in the order of the sorted names."""
    causes: jax.Array
    """`[N]` bits of `envs_gpu.guards.Cause`."""


class JaxEnv(ZooEnv):
    """N worlds of one env of such a family.

    JAX writes every result to a new buffer, which torch views: `step` copies nothing in either direction.

    Args:
        env: the family's, without its wrappers.
        spec: all but the observation widths, which its first observation tells.
        seed: of the worlds' random numbers.
        first_world: identity of the first world, for ranks of a distributed run.

    Raises:
        ZooError: its observation is not made of vectors.
    """

    def __init__(self, env: Any, spec: EnvSpec, seed: int, first_world: int) -> None:
        self.env, self.spec = env, spec
        self._first_world = first_world
        self._jax_device = jax.devices(spec.device.type)[spec.device.index or 0]
        self._low, self._high = (
            torch.tensor(limit, device=spec.device) for limit in (spec.action_low, spec.action_high)
        )
        self.book = EpisodeBook(spec.num_envs, spec.device)
        self._types = self._stable_types()
        self._begin_jit = jax.jit(self._begin)
        self._advance_jit = jax.jit(self._advance)
        self.reset(seed)
        self.spec = replace(spec, obs_dims={group: value.shape[-1] for group, value in self.obs.items()})

    def reset(self, seed: int) -> TensorDict:
        worlds = jnp.arange(self._first_world, self._first_world + self.num_envs, dtype=jnp.uint32)
        place = jax.device_put((jnp.uint32(seed % 2**32), worlds), self._jax_device)
        self._carry, obs = self._begin_jit(*place)
        self.book.clear()
        self.obs = self._pack(obs)
        return self.obs

    @torch.no_grad()
    def step(self, action: Tensor) -> StepResult:
        # Clipping alone would hide that an action was infinite.
        clipped = action.float().clamp(self._low, self._high)
        action = bridge.aligned(torch.where(action.isfinite(), clipped, torch.nan))
        self._carry, given = self._advance_jit(self._carry, bridge.to_jax(action))
        reward, terminated, truncated = (
            bridge.to_torch(value) for value in (given.reward, given.terminated, given.truncated)
        )
        names = [_metric_name(name) for name in sorted(self._types.metrics)] + ["physics/broken"]
        metrics = dict(zip(names, bridge.to_torch(given.metrics).unbind(), strict=True))
        causes = bridge.to_torch(given.causes)
        self.book.add(reward, terminated | truncated, metrics, causes)
        self.obs = self._pack(given.obs)
        final_obs = self._pack(given.final_obs)
        return StepResult(self.obs, reward, terminated, truncated, final_obs, metrics, causes != 0)

    def state_dict(self) -> dict[str, Tensor]:
        leaves = jax.tree_util.tree_leaves_with_path(self._carry)
        state = {jax.tree_util.keystr(path): _bits(bridge.to_torch(leaf)).clone() for path, leaf in leaves}
        state |= {f"obs.{group}": value.clone() for group, value in self.obs.items()}
        return state | self.book.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        def load(path: Any, leaf: jax.Array) -> jax.Array:
            dtype = bridge.to_torch(leaf).dtype
            bits = state[jax.tree_util.keystr(path)].to(self.device, copy=True)
            return bridge.to_jax(bridge.aligned(bits.view(dtype)))

        self._carry = jax.tree_util.tree_map_with_path(load, self._carry)
        self.book.load_state_dict(state)
        obs = {group: state[f"obs.{group}"].to(self.device, copy=True) for group in self.spec.obs_dims}
        self.obs = TensorDict(obs, batch_size=[self.num_envs], device=self.device)

    @property
    def drawn_model(self) -> Any:
        owner = self.env if hasattr(self.env, "mj_model") else getattr(self.env, "sys", None)
        return getattr(owner, "mj_model", None)

    def positions(self) -> Tensor:
        return bridge.to_torch(self._qpos())

    def _qpos(self) -> jax.Array:
        """Playground keeps MJX's data in its state, brax a pipeline of its own."""
        state = self._carry.state
        return state.data.qpos if hasattr(state, "data") else state.pipeline_state.q

    def _begin(self, seed: jax.Array, worlds: jax.Array) -> tuple[Carry, dict[str, jax.Array]]:
        """Everything anew: worlds with the identities `worlds` `[N]`."""
        key = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.PRNGKey(seed), worlds)
        nothing = jnp.zeros(self.num_envs, jnp.int32)
        state = self._fresh(key, nothing)
        return Carry(state, key, nothing, nothing), _groups(state.obs)

    def _advance(self, carry: Carry, action: jax.Array) -> tuple[Carry, Given]:
        """One control step of every world; those that are done start their next episode."""
        stepped = self._cast(jax.vmap(self.env.step)(carry.state, action))
        step = carry.step + 1
        final_obs = _groups(stepped.obs)
        # A world whose simulation blew up ends here and earns nothing; its neighbours never hear of it.
        causes = jnp.where(jnp.isfinite(action).all(-1), 0, int(Cause.ACTION))
        causes |= jnp.where(jnp.isfinite(stepped.reward), 0, int(Cause.REWARD))
        for value in final_obs.values():
            causes |= jnp.where(jnp.isfinite(value).all(-1), 0, int(Cause.OBSERVATION))
        finite = causes == 0
        terminated = stepped.done.astype(bool) | ~finite
        truncated = (step >= self.spec.max_episode_steps) & ~terminated
        done = terminated | truncated
        episode = carry.episode + done

        def restart(_: None) -> Any:
            fresh = self._fresh(carry.key, episode)
            return jax.tree.map(lambda new, old: jnp.where(_along(done, old), new, old), fresh, stepped)

        # On a GPU, where among thousands of worlds somebody is always done, branching would only wait.
        if self.device.type == "cpu":
            state = jax.lax.cond(done.any(), restart, lambda _: stepped, None)
        else:
            state = restart(None)
        measured = [jnp.where(finite, stepped.metrics[name], 0.0) for name in sorted(stepped.metrics)]
        given = Given(
            obs=_groups(state.obs),
            reward=jnp.where(finite, stepped.reward, 0.0).astype(jnp.float32),
            terminated=terminated,
            truncated=truncated,
            final_obs={group: jnp.where(finite[:, None], value, 0.0) for group, value in final_obs.items()},
            causes=causes.astype(jnp.uint8),
            metrics=jnp.stack([value.astype(jnp.float32) for value in (*measured, ~finite)]),
        )
        return Carry(state, carry.key, episode, jnp.where(done, 0, step)), given

    def _fresh(self, key: jax.Array, episode: jax.Array) -> Any:
        """The state of every world at the start of its episode number `episode` `[N]`."""
        return self._cast(jax.vmap(self.env.reset)(jax.vmap(jax.random.fold_in)(key, episode)))

    def _cast(self, state: Any) -> Any:
        """`state` in the types that resetting and stepping agree on: another type would compile anew."""
        return jax.tree.map(
            lambda value, like: jax.lax.convert_element_type(value, like.dtype), state, self._types
        )

    def _stable_types(self) -> Any:
        keys = jax.ShapeDtypeStruct((self.num_envs, 2), jnp.uint32)
        action = jax.ShapeDtypeStruct((self.num_envs, self.spec.action_dim), jnp.float32)
        begun = jax.eval_shape(jax.vmap(self.env.reset), keys)
        stepped = jax.eval_shape(jax.vmap(self.env.step), begun, action)
        for group, value in _groups(begun.obs).items():
            if len(value.shape) != 2:
                problem = f"observation {group!r} has shape {value.shape[1:]}, and only vectors are supported"
                raise ZooError(problem, "choose an env with vector observations")
        return jax.tree.map(
            lambda one, other: jax.ShapeDtypeStruct(one.shape, jnp.promote_types(one.dtype, other.dtype)),
            begun,
            stepped,
        )

    def _pack(self, obs: dict[str, jax.Array]) -> TensorDict:
        views = {group: bridge.to_torch(value) for group, value in obs.items()}
        return TensorDict(views, batch_size=[self.num_envs], device=self.device)


def _groups(obs: Any) -> dict[str, Any]:
    """A family's observation as groups of the contract."""
    if isinstance(obs, Mapping):
        return {GROUPS.get(str(name), str(name)): value for name, value in obs.items()}
    return {"policy": obs}


def _metric_name(name: str) -> str:
    """`reward_forward` -> `reward/forward`, as terms of the reward are named here."""
    return name.replace("reward_", "reward/", 1) if name.startswith("reward_") else name


def _along(mask: jax.Array, value: jax.Array) -> jax.Array:
    return mask.reshape(mask.shape + (1,) * (value.ndim - 1))


def _bits(tensor: Tensor) -> Tensor:
    """Unsigned numbers as the signed ones of the same bits: files and copies of those work everywhere."""
    return tensor.view(torch.int32) if tensor.dtype == torch.uint32 else tensor
