"""MuJoCo Warp: every world stepped by the same kernels, captured once and replayed as one graph."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import envs_gpu.physics._quiet_warp  # noqa: F401 - before anything that imports Warp

# isort: split
import mujoco
import mujoco_warp as mjw
import torch
import warp as wp
from mujoco_warp._src import collision_primitive, constraint, smooth, solver
from torch import Tensor

from envs_gpu import bridge
from envs_gpu.physics import _equality_velocity, _hessian_order, backend, honours
from envs_gpu.physics._capacity import capacity, overflow_of
from envs_gpu.physics._capsule_frame import correct_warp
from envs_gpu.physics._solver import with_newton
from envs_gpu.physics._warp_kernels import keep_unmasked, restart_worlds
from envs_gpu.physics.base import Physics, PhysicsOptions, PhysicsState, check_layout, nominal

_CONTINUATION = ("qpos", "qvel", "act", "ctrl", "time", "qacc_warmstart", "sensordata")
_FEW = (16, 128)
"""On a CPU, up to so many worlds that restart are evaluated in a batch of that size, not among all."""


@backend("warp")
class WarpPhysics(Physics):
    """Worlds in Warp's float32 arrays, which torch views.

    The whole control step and the masked restart are each one captured graph: a CUDA graph on torch's
    stream, and on the CPU Warp's own recording, which spares the launches' Python.

    Args:
        model: the compiled scene.
        num_worlds: N.
        device: `cpu` or `cuda`.
        options: `per_world`, `max_contacts`, `max_constraints`.

    Raises:
        UnsupportedModelError: the engine holds one of the per-world fields in another way.
    """

    name = "warp"

    def __init__(
        self, model: mujoco.MjModel, num_worlds: int, device: torch.device, options: PhysicsOptions
    ) -> None:
        super().__init__(model, num_worlds, device, options)
        wp.init()
        correct_warp(collision_primitive)
        _hessian_order.correct_warp(solver)
        _equality_velocity.correct_warp(constraint, smooth)
        self._wp_device = wp.device_from_torch(device)
        with wp.ScopedDevice(self._wp_device):
            own = with_newton(honours.prepared(model, self.name))
            with honours.refusing(model, self.name):
                self._model = mjw.put_model(own)
            self._model.opt.warn_overflow = 0  # prints from kernels; `overflow` tells the same
            self._give_rows(self._model)  # before the graphs are captured, which keep the arrays' addresses
            self.room = room = capacity(model, self._model.nxn_geom_pair_filtered.numpy(), options)
            self._data = mjw.put_data(
                own, mujoco.MjData(own), num_worlds, nconmax=room.contacts, njmax=room.constraints
            )
            self._sensordata_before = wp.empty_like(self._data.sensordata)
        self._tensors = {name: bridge.warp_to_torch(getattr(self._data, name)) for name in _CONTINUATION}
        self._overflow = bridge.warp_to_torch(self._data.overflow)
        self.state = PhysicsState(**{name: self._tensors[name] for name in PhysicsState._fields})

        self._mask = torch.ones(num_worlds, dtype=torch.bool, device=device)
        self._qpos = self.state.qpos.clone()
        self._qvel = self.state.qvel.clone()
        self._act = self._start_act.to(device, torch.float32)
        self._restart_inputs = [
            bridge.torch_to_warp(self._mask, wp.bool),
            bridge.torch_to_warp(self._qpos, wp.float32),
            bridge.torch_to_warp(self._qvel, wp.float32),
            bridge.torch_to_warp(self._act, wp.float32),
        ]
        wp.synchronize_device(self._wp_device)  # what was uploaded on Warp's stream is used on torch's
        self._restart_graph = self._capture(self._restart)
        self._step_graphs: dict[int, wp.Graph] = {}
        self._side_batches: dict[int, WarpPhysics] = {}
        self._launch(self._restart_graph)

    def step(self, ctrl: Tensor, substeps: int) -> None:
        if substeps not in self._step_graphs:
            self._step_graphs[substeps] = self._capture(lambda: self._advance(substeps))
        self.state.ctrl.copy_(ctrl)
        self._launch(self._step_graphs[substeps])

    def set_state(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        if self.device.type == "cpu":
            # Looking is free here, and the sensors of all worlds cost as much as one more timestep.
            rows = mask.nonzero().squeeze(-1)
            size = next((size for size in _FEW if len(rows) <= size < self.num_worlds), None)
            if size is not None:
                self._restart_few(rows, qpos[rows], qvel[rows], self._side_batch(size))
                return
        self._mask.copy_(mask)
        self._qpos.copy_(qpos)
        self._qvel.copy_(qvel)
        self._launch(self._restart_graph)

    def overflow_bits(self) -> Tensor:
        return overflow_of(self._overflow)

    def clear_overflow(self) -> None:
        self._overflow.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._tensors.items()} | self._model_state()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])
        self._load_model_state(state)

    def _give_rows(self, model: mjw.Model) -> None:
        """Replace the per-world fields of `model`, one row for all worlds, by a row for each.

        Raises:
            UnsupportedModelError: its row is not the scene's.
        """
        for field in self.options.per_world:
            *path, name = field.split(".")
            owner = attrgetter(*path)(model) if path else model
            shared = getattr(owner, name)
            row = shared.numpy()[:1]
            values = torch.tensor(nominal(self.model, field), device=self.device)
            check_layout(self.name, field, self._as_held(field, values, model).cpu().numpy(), row[0])
            rows: wp.array[Any] = wp.array(
                row.repeat(self.num_worlds, 0), dtype=shared.dtype, device=self._wp_device
            )
            setattr(owner, name, rows)
            self._per_world.setdefault(field, []).append(bridge.warp_to_torch(rows))

    def _as_held(self, field: str, values: Tensor, model: mjw.Model) -> Tensor:
        """`values` `[..., *]` of the scene's `field` in the terms of `model`."""
        return values

    def _advance(self, substeps: int) -> None:
        for _ in range(substeps):
            mjw.step(self._model, self._data)
        self._evaluate_sensors()

    def _restart(self) -> None:
        data = self._data
        wp.copy(self._sensordata_before, data.sensordata)
        worlds = self.num_worlds
        targets = [data.qpos, data.qvel, data.act, data.ctrl, data.time, data.qacc_warmstart]
        wp.launch(restart_worlds, worlds, inputs=self._restart_inputs, outputs=targets)
        self._evaluate_sensors()
        # On a GPU contacts are summed in another order every time: the last bit of a force may differ.
        inputs = [self._restart_inputs[0], self._sensordata_before]
        wp.launch(keep_unmasked, data.sensordata.shape, inputs=inputs, outputs=[data.sensordata])

    def _restart_few(self, rows: Tensor, qpos: Tensor, qvel: Tensor, side: WarpPhysics) -> None:
        """Restart the worlds `rows` `[n]` in the first `n` worlds of `side`, and take every bit over."""
        count = len(rows)
        if not count:
            return
        places = torch.arange(count)
        for field, (sensing, *_) in self._per_world.items():
            side.randomize(field, sensing[rows], places)
        side._overflow.zero_()
        side._mask[:count], side._mask[count:] = True, False
        side._qpos[:count], side._qvel[:count] = qpos, qvel
        side._launch(side._restart_graph)
        for name, tensor in self._tensors.items():
            tensor[rows] = side._tensors[name][:count]
        self._overflow[rows] |= side._overflow[:count]

    def _side_batch(self, size: int) -> WarpPhysics:
        if size not in self._side_batches:
            self._side_batches[size] = WarpPhysics(self.model, size, self.device, self.options)
        return self._side_batches[size]

    def _evaluate_sensors(self) -> None:
        """Sensors of the state as it is; derived quantities only, so the warm start survives."""
        if self.model.nsensordata:
            mjw.forward(self._model, self._data)

    def _capture(self, function: Callable[[], None]) -> wp.Graph:
        with wp.ScopedDevice(self._wp_device), wp.ScopedCapture() as capture:
            function()
        return capture.graph

    def _launch(self, graph: wp.Graph) -> None:
        on_cuda = self.device.type == "cuda"
        wp.capture_launch(graph, stream=wp.stream_from_torch(self.device) if on_cuda else None)
