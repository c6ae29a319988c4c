"""An exported file, stepped as a robot steps it; and as a policy for `evaluate`.

Letters: B batch, N worlds, D width of the readings, S width of a state, U targets, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.interface import PolicyInterface, Targets
from pi_incubator import faults
from pi_incubator.deploy.graph import sensor_readings
from pi_incubator.errors import UserError

Array = NDArray[np.float32]


class Session:
    """An exported policy with the memory of a batch of robots.

    Args:
        model: the file's content.
        source: what it is called in errors.

    Raises:
        UserError: onnxruntime cannot run it, or it is no file of a bundle.
    """

    def __init__(self, model: bytes, source: str = "policy.onnx") -> None:
        self._session = open_session(model, source)
        self.width = self._session.get_inputs()[0].shape[-1]
        """D."""
        if (first := self._session.get_outputs()[0].name) != "target":
            fix = "export the run again with pi-export"
            raise UserError(f"{source}: gives {first!r} where a bundle's file gives 'target'; {fix}")
        self.widths: dict[str, int] = {node.name: node.shape[-1] for node in self._session.get_inputs()[1:]}
        """Name of the input -> S, of every state."""
        self.states: dict[str, Array] = {}
        """Name of the input -> what was remembered last `[B, S]`."""

    def feeds(self, observation: Array) -> dict[str, Array]:
        """The file's inputs for readings `[B, D]`."""
        batch = len(observation)
        if self.states.keys() != self.widths.keys() or any(len(s) != batch for s in self.states.values()):
            self.states = {name: np.zeros((batch, width), np.float32) for name, width in self.widths.items()}
        return {"observation": np.ascontiguousarray(observation), **self.states}

    def step(self, observation: Array) -> Array:
        """Readings `[B, D]` -> targets `[B, U]`; remembers."""
        faults.reach("runner")
        target, *states = self._session.run(None, self.feeds(observation))
        self.states = dict(zip(self.widths, states, strict=True))
        return target

    def restart(self, mask: NDArray[np.bool_]) -> None:
        """Forget what the robots where `mask` `[B]` is true did."""
        for state in self.states.values():
            state[mask] = 0.0

    @property
    def last_action(self) -> Array | None:
        """The actions behind the last targets `[B, A]`, where the policy remembers them."""
        return self.states.get("last_action_in")


class ExportedPolicy:
    """An exported file as a policy with a memory, for `evaluate`; sees what a robot would have measured."""

    def __init__(self, session: Session, interface: PolicyInterface) -> None:
        self.session, self.interface = session, interface

    def initial_state(self, num_worlds: int) -> Tensor:
        """All states of the file side by side, `[num_worlds, S]` zeros."""
        return torch.zeros(num_worlds, sum(self.session.widths.values()))

    def mean(self, obs: TensorDict, state: Tensor) -> tuple[Tensor, Tensor]:
        """Raw observation groups and state `[N, S]` -> action `[N, A]` and the next state."""
        session, observation = self.session, obs["policy"]
        parts = state.cpu().split(list(session.widths.values()), -1)
        session.states = {name: part.numpy() for name, part in zip(session.widths, parts, strict=True)}
        target = session.step(sensor_readings(observation, self.interface).cpu().numpy())
        after = [torch.from_numpy(value) for value in session.states.values()]
        action = session.last_action
        acted = action_behind(torch.from_numpy(target), self.interface.targets) if action is None else action
        state = torch.cat(after, -1) if after else state
        return torch.as_tensor(acted).to(observation.device), state.to(observation.device)


def action_behind(target: Tensor, targets: Targets) -> Tensor:
    """An action `[N, A]` whose target is `target`; of all those beyond a limit, the smallest."""
    moved, scale = target - targets.offset, targets.scale
    if targets.scale_below is not None:
        scale = torch.where(moved > 0, scale, targets.scale_below)
    return torch.where(scale == 0, 0.0, moved / scale)  # no action moves a target that is at its limit


def load_exported(path: Path, interface: PolicyInterface) -> ExportedPolicy:
    """The exported file at `path`, as a policy for `evaluate`.

    Raises:
        UserError: it cannot be read or run, or is for another interface.
    """
    try:
        session = Session(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name an exported file") from None
    width = sum(term.width for term in interface.terms if term.kind != "last_action")
    if session.width != width:
        problem = f"takes observations of {session.width} values, the run's robot gives {width}"
        raise UserError(f"{path}: {problem}; name a file that was exported from this run")
    return ExportedPolicy(session, interface)


class ExportedPixels:
    """An exported policy of pixels, for `evaluate`."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        widths = {node.name: node.shape[-1] for node in session.get_inputs()}
        self.state_width: int = widths.pop("hidden_in", 0)
        """S, 0 where the file has no state."""
        self._groups = {name: "pixels" if name == "observation" else name for name in widths}

    def initial_state(self, num_worlds: int) -> Tensor:
        return torch.zeros(num_worlds, self.state_width)

    def mean(self, obs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        """The file's groups, `pixels` `[N, C, H, W]` uint8 among them, and state `[N, S]` -> action `[N, A]`
        and the next state."""
        pixels = obs["pixels"]
        feeds = {name: np.ascontiguousarray(obs[group].cpu().numpy()) for name, group in self._groups.items()}
        if self.state_width:
            feeds["hidden_in"] = state.cpu().numpy()
        action, *hidden = (torch.from_numpy(value) for value in self._session.run(None, feeds))
        return action.to(pixels.device), hidden[0].to(state.device) if hidden else state


def load_pixels(path: Path) -> ExportedPixels:
    """The exported policy of pixels at `path`."""
    return ExportedPixels(open_session(path.read_bytes(), str(path)))


def open_session(model: bytes, source: str) -> onnxruntime.InferenceSession:
    """The file's content in onnxruntime, on one thread of the CPU.

    Raises:
        UserError: it cannot be run.
    """
    options = onnxruntime.SessionOptions()
    # Policies are small: more threads only spin beside those that step the physics.
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Where x86 has no VNNI, products of int8 saturate in 16 bits unless onnxruntime is told to be exact.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions share no base class of their own.
    except Exception as error:
        fix = "export the run again with pi-export"
        raise UserError(f"{source}: cannot be run by onnxruntime ({error}); {fix}") from None
