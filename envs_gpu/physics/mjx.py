"""MJX: one jitted function that restarts, steps and senses; MuJoCo in JAX, or Warp's kernels inside JAX."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import envs_gpu.physics._quiet_warp  # noqa: F401 - before anything that imports Warp

# isort: split
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import torch
from mujoco import mjx
from mujoco.mjx._src import collision_driver, constraint, derivative, smooth, solver, support
from torch import Tensor

from envs_gpu import bridge
from envs_gpu.physics import (
    _equality_velocity,
    _equality_velocity_jax,
    _force_limit,
    _newton_end,
    backend,
    honours,
)
from envs_gpu.physics._capacity import Capacity, capacity, overflow_of
from envs_gpu.physics._capsule_frame import correct_mjx, correct_warp
from envs_gpu.physics._solver import with_newton
from envs_gpu.physics.base import Physics, PhysicsOptions, PhysicsState, check_layout, nominal

Varied = dict[str, jax.Array]
"""Fields of the model in which worlds differ, by name, `[N, ...]`."""


class Carry(NamedTuple):
    """What one call hands to the next; everything else in `mjx.Data` is derived from it."""

    qpos: jax.Array
    qvel: jax.Array
    act: jax.Array
    ctrl: jax.Array
    time: jax.Array
    qacc_warmstart: jax.Array
    sensordata: jax.Array
    overflow: jax.Array


@backend("mjx")
class MjxPhysics(Physics):
    """Worlds in JAX's float32 arrays, which torch views.

    JAX writes every result to a new buffer, whose columns torch views, so `state` is replaced by `step` and
    `set_state`: read it anew after each call. Nothing is donated, because torch may still look at the old
    buffers. XLA compiles every N anew, so a world's last bits depend on N, though not on its place.

    Args:
        model: the compiled scene.
        num_worlds: N.
        device: `cpu` or `cuda`.
        options: `mjx_impl` and `per_world`; with `warp` also `max_contacts`, `max_constraints`, where `jax`
            makes room for every contact that the model can have.

    Raises:
        UnsupportedModelError: the model has a feature that MJX lacks; the message names the nearest engine.
        RuntimeError: torch has this device and JAX does not; the message is JAX's own.
    """

    name = "mjx"
    number_matters = "XLA compiles every N anew"

    def __init__(
        self, model: mujoco.MjModel, num_worlds: int, device: torch.device, options: PhysicsOptions
    ) -> None:
        super().__init__(model, num_worlds, device, options)
        jax_device = jax.devices(device.type)[device.index or 0]
        # Flattening a model takes JAX longer than launching the program: once here, not at every call.
        mjx_model, mjx_data, self.room = _put(model, num_worlds, options, jax_device)
        start_act = jax.device_put(self._start_act.numpy().astype(np.float32), jax_device)
        mjx_data = mjx_data.replace(act=start_act)  # a blank world's, which a restart takes
        self._varied = {field: self._rows_of(field, mjx_model) for field in options.per_world}
        self._constants, structure = jax.tree.flatten((mjx_model, mjx_data))
        self._program = _program(structure)
        # Python's numbers would be converted at every call.
        self._counts: dict[int, jax.Array] = {}
        self._nobody = jax.device_put(jnp.zeros(num_worlds, bool), jax_device)
        self._carry: Carry = jax.device_put(_initial_carry(model, num_worlds), jax_device)
        self._widths = [model.nq, model.nv, model.na, model.nu, model.nsensordata, 1]
        everybody = torch.ones(num_worlds, dtype=torch.bool, device=device)
        self._controls = bridge.aligned_empty((num_worlds, model.nu), torch.float32, device)
        self._read_controls = bridge.to_jax(self._controls)
        self._show(_packed(self._carry))
        self.set_state(everybody, self.state.qpos, self.state.qvel)

    def step(self, ctrl: Tensor, substeps: int) -> None:
        carry = self._carry._replace(ctrl=self._given(ctrl))
        self._advance(carry, self._nobody, carry.qpos, carry.qvel, substeps)

    def set_state(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        new_qpos, new_qvel = (self._to_jax(value, torch.float32) for value in (qpos, qvel))
        self._advance(self._carry, self._to_jax(mask, torch.bool), new_qpos, new_qvel, 0)

    def randomize(self, field: str, values: Tensor, worlds: Tensor) -> None:
        # JAX may still read the old rows: it gets new ones.
        rows = bridge.to_torch(self._varied[field]).clone()
        rows[worlds] = values.to(rows.dtype)
        self._varied[field] = self._to_jax(rows)
        self._per_world[field] = [rows]

    def push(self, worlds: Tensor, change: Tensor) -> None:
        qvel = self.state.qvel.clone()
        qvel[worlds] += change.to(qvel.dtype)
        self._carry = self._carry._replace(qvel=self._to_jax(qvel))
        self.state = self.state._replace(qvel=qvel)

    def overflow_bits(self) -> Tensor:
        return overflow_of(bridge.to_torch(self._carry.overflow))

    def clear_overflow(self) -> None:
        self._carry = self._carry._replace(overflow=jnp.zeros_like(self._carry.overflow))

    def state_dict(self) -> dict[str, Tensor]:
        carry = {name: bridge.to_torch(array).clone() for name, array in self._carry._asdict().items()}
        return carry | self._model_state()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        arrays = {name: self._to_jax(state[name].to(self.device).clone()) for name in Carry._fields}
        self._carry = Carry(**arrays)
        self._load_model_state(state)
        self._show(_packed(self._carry))

    def _rows_of(self, field: str, model: mjx.Model) -> jax.Array:
        """The model's own value of `field`, a row for each world."""
        value = torch.tensor(nominal(self.model, field), dtype=torch.float32)
        check_layout(self.name, field, value.numpy(), np.asarray(attrgetter(field)(model)))
        rows = value.expand(self.num_worlds, *value.shape).contiguous().to(self.device)
        self._per_world[field] = [rows]
        return self._to_jax(rows)

    def _advance(
        self, carry: Carry, mask: jax.Array, qpos: jax.Array, qvel: jax.Array, substeps: int
    ) -> None:
        count = self._counts.get(substeps)
        if count is None:
            count = self._counts[substeps] = jax.device_put(jnp.int32(substeps), self._nobody.sharding)
        self._carry, shown = self._program(self._constants, self._varied, carry, mask, qpos, qvel, count)
        self._show(shown)

    def _show(self, shown: jax.Array) -> None:
        """Point `state` at the columns of the last result: one crossing, where its fields would be six.

        DLPack waits for it, so that the caller may then reuse the tensors that the program read.
        """
        self._shown = shown
        columns = bridge.to_torch(shown).split(self._widths, 1)
        self.state = PhysicsState._make((*columns[:-1], columns[-1].squeeze(1)))

    def _given(self, ctrl: Tensor) -> jax.Array:
        """The controls as JAX reads them.

        On a CPU they are written into memory that JAX has seen before, as the other backends do: that costs
        a tenth of a crossing. On CUDA only a crossing makes JAX's stream wait for torch's.
        """
        if self.device.type != "cpu":
            return self._to_jax(ctrl, torch.float32)
        self._controls.copy_(ctrl)
        return self._read_controls

    def _to_jax(self, tensor: Tensor, dtype: torch.dtype | None = None) -> jax.Array:
        return bridge.to_jax(bridge.aligned(tensor.to(dtype or tensor.dtype)))


def _put(
    model: mujoco.MjModel, num_worlds: int, options: PhysicsOptions, device: jax.Device
) -> tuple[mjx.Model, mjx.Data, Capacity | None]:
    """The model, one world's blank data with room for the contacts of all, and what that room is."""
    engine = "mjx-warp" if options.mjx_impl == "warp" else "mjx"
    own = with_newton(honours.prepared(model, engine))
    with honours.refusing(model, engine):
        return (_put_warp if options.mjx_impl == "warp" else _put_jax)(own, num_worlds, options, device)


def _put_jax(
    model: mujoco.MjModel, num_worlds: int, options: PhysicsOptions, device: jax.Device
) -> tuple[mjx.Model, mjx.Data, None]:
    impl = "jax"
    correct_mjx(collision_driver)
    _force_limit.correct_mjx(derivative)
    _equality_velocity_jax.correct_mjx(constraint, smooth, support)
    _newton_end.correct_mjx(solver, support)
    model = copy.copy(model)
    # A contact sensor that does not reduce would read the scene's first contacts, whoever's they are. The
    # deepest of its own are what it should have read, as long as it has a slot for each.
    reduction = model.sensor_intprm[:, 1]
    reduction[(model.sensor_type == mujoco.mjtSensor.mjSENS_CONTACT) & (reduction == 0)] = 1
    data = mjx.make_data(model, impl=impl, device=device)
    return mjx.put_model(model, impl=impl, device=device), data, None


def _put_warp(
    model: mujoco.MjModel, num_worlds: int, options: PhysicsOptions, device: jax.Device
) -> tuple[mjx.Model, mjx.Data, Capacity]:
    from mujoco.mjx.third_party.mujoco_warp._src import collision_primitive, constraint, smooth

    correct_warp(collision_primitive)
    _equality_velocity.correct_warp(constraint, smooth)
    mjx_model = mjx.put_model(model, impl="warp", device=device)
    # Overflows are counted, not printed from the kernels.
    mjx_model = mjx_model.tree_replace({"opt._impl.warn_overflow": 0})
    room = capacity(model, mjx_model._impl.nxn_geom_pair_filtered, options)
    data = mjx.make_data(
        model, impl="warp", device=device, naconmax=num_worlds * room.contacts, njmax=room.constraints
    )
    return mjx_model, data, room


def _initial_carry(model: mujoco.MjModel, num_worlds: int) -> Carry:
    def zeros(*shape: int, dtype: type = jnp.float32) -> jax.Array:
        return jnp.zeros((num_worlds, *shape), dtype)

    return Carry(
        qpos=jnp.tile(jnp.asarray(model.qpos0, jnp.float32), (num_worlds, 1)),
        qvel=zeros(model.nv),
        act=zeros(model.na),
        ctrl=zeros(model.nu),
        time=zeros(),
        qacc_warmstart=zeros(model.nv),
        sensordata=zeros(model.nsensordata),
        overflow=zeros(dtype=jnp.int32),
    )


@functools.cache
def _program(structure: jax.tree_util.PyTreeDef) -> Callable[..., tuple[Carry, jax.Array]]:
    """`_advance` and `_pack`, jitted; shared by all worlds of one model, so compiled once for each N."""

    @jax.jit
    def program(constants: list[jax.Array], *args: Any) -> tuple[Carry, jax.Array]:
        carry = _advance(*structure.unflatten(constants), *args)
        return carry, _pack(carry)

    return program


def _pack(carry: Carry) -> jax.Array:
    """The fields of `PhysicsState` beside each other, `[N, nq + nv + na + nu + ns + 1]`."""
    fields = [getattr(carry, name) for name in PhysicsState._fields]
    return jnp.concatenate([field.reshape(len(carry.time), -1) for field in fields], axis=1)


_packed = jax.jit(_pack)


def _advance(
    model: mjx.Model,
    blank: mjx.Data,
    varied: Varied,
    carry: Carry,
    mask: jax.Array,
    qpos: jax.Array,
    qvel: jax.Array,
    substeps: int,
) -> Carry:
    """Restart the worlds in `mask` `[N]`, advance all by `substeps`, evaluate the sensors.

    Restarting and stepping share one program, and `substeps` is traced, because compiling the dynamics takes
    many seconds. The program holds them twice, once in the loop and once for the sensors.
    """
    carry = _restart(carry, blank.act, mask, qpos, qvel)

    def substep(_: int, carry: Carry) -> Carry:
        return _dynamics(mjx.step, model, blank, varied, carry)

    before = carry.sensordata
    carry = jax.lax.fori_loop(0, substeps, substep, carry)
    if not before.shape[-1]:
        return carry
    sensed = _dynamics(mjx.forward, model, blank, varied, carry)
    fresh = (substeps > 0) | mask[:, None]
    return carry._replace(sensordata=jnp.where(fresh, sensed.sensordata, before))


def _restart(carry: Carry, act: jax.Array, mask: jax.Array, qpos: jax.Array, qvel: jax.Array) -> Carry:
    def choose(new: jax.Array | float, old: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (old.ndim - 1)), new, old)

    return carry._replace(
        qpos=choose(qpos, carry.qpos),
        qvel=choose(qvel, carry.qvel),
        act=choose(act, carry.act),
        ctrl=choose(0.0, carry.ctrl),
        time=choose(0.0, carry.time),
        qacc_warmstart=choose(0.0, carry.qacc_warmstart),
    )


def _dynamics(
    function: Callable[[mjx.Model, mjx.Data], mjx.Data],
    model: mjx.Model,
    blank: mjx.Data,
    varied: Varied,
    carry: Carry,
) -> Carry:
    """`mjx.step` or `mjx.forward` of every world; only what `Carry` holds survives, XLA drops the rest."""

    def world(varied: Varied, carry: Carry) -> Carry:
        own = model.tree_replace(varied)
        fields = carry._asdict()
        overflow = fields.pop("overflow")
        data = blank.replace(**fields)
        if model.impl == mjx.Impl.WARP:
            data = function(own, data.tree_replace({"_impl.overflow": overflow}))
            overflow = data._impl.overflow
        else:
            data = function(own, data)
        return Carry(**{name: getattr(data, name) for name in fields}, overflow=overflow)

    return jax.vmap(world)(varied, carry)
