"""A policy on a robot: observation in, safe targets out.

Letters: D observation width, U targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._network import Array, FiniteCheck, Network
from .bundle import Bundle, read_bundle
from .contract import LARGEST, Contract
from .errors import ObservationError, RuntimeBundleError
from .flags import Flags
from .providers import make_network


class Policy:
    """Runs a network within the contract; make one with `Policy.load`.

    A step allocates nothing that stays, and its checks are a few numpy calls on buffers made here.
    """

    def __init__(self, contract: Contract, network: Network, max_rate: float | Array | None = None) -> None:
        """See `load`, which reads both from a bundle."""
        self.contract = contract
        self._network = network
        self._observation = network.observation
        self._terms = _term_views(contract, network.observation)
        self._in_low, self._in_high = _per_value(contract)
        self._within = np.empty((2, contract.observation_width), bool)
        self._all_within = b"\1" * self._within.size
        self._safe = np.array(contract.safe_target, np.float32)
        self._out_low = _limits([joint.target_low for joint in contract.joints], -np.inf)
        self._out_high = _limits([joint.target_high for joint in contract.joints], np.inf)
        self._finite = FiniteCheck(contract.num_targets)
        self._max_change = _max_change(contract, max_rate)  # [U] or None
        self._lowest, self._highest = np.empty_like(self._safe), np.empty_like(self._safe)
        self._wanted = np.empty_like(self._safe)
        self._target = self._safe.copy()
        self._flags = 0

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        provider: str = "auto",
        max_rate: float | Array | None = None,
        allow_failed_gates: bool = False,
    ) -> Policy:
        """The policy in the bundle at `path`, a folder or a .tar.gz.

        Args:
            path: of the bundle.
            provider: "onnxruntime", "tensorrt", or "auto": TensorRT where there is an engine for this GPU.
            max_rate: of every target, in its unit per second (a number or `[U]`), instead of the contract's.
            allow_failed_gates: take a bundle that is marked as one that failed a gate, for a simulator.

        Raises:
            RuntimeBundleError: the bundle cannot be used, or failed a gate, or `max_rate` is not above 0.
        """
        bundle = read_bundle(path)
        if bundle.failed_gates and not allow_failed_gates:
            problem = "failed its gates and is not for a robot; export a better one"
            raise RuntimeBundleError(f"{path}: {problem}, or allow failed gates in a simulator")
        return cls.of(bundle, provider=provider, max_rate=max_rate)

    @classmethod
    def of(cls, bundle: Bundle, *, provider: str = "auto", max_rate: float | Array | None = None) -> Policy:
        """The policy in a bundle that has been read, whatever its gates say; arguments as `load`."""
        return cls(bundle.contract, make_network(bundle, provider), max_rate)

    @property
    def flags(self) -> Flags:
        """What was remarkable about the last step."""
        return Flags(self._flags)

    @property
    def provider(self) -> str:
        """What runs the network: "onnxruntime" or "tensorrt"."""
        return self._network.provider

    @property
    def limits_rates(self) -> bool:
        """Whether a target may change only so fast."""
        return self._max_change is not None

    @property
    def observation(self) -> Array:
        """The observation of the last step, `[D]`: the policy's own buffer."""
        return self._observation

    @property
    def target(self) -> Array:
        """The target of the last step, `[U]`: the policy's own buffer."""
        return self._target

    def states(self) -> dict[str, Array]:
        """What the network remembers, by name: views that are valid until the next step."""
        return self._network.states()

    def reset(self, target: Array | None = None) -> None:
        """Forget everything, as at the start of an episode.

        Args:
            target: `[U]` that the robot holds now, from which a rate limit counts; default: the safe target.

        Raises:
            ObservationError: `target` has another shape or is not finite.
        """
        held = self._safe if target is None else np.asarray(target, np.float32)
        if held.shape != self._safe.shape or not np.isfinite(held).all():
            raise ObservationError(f"reset: target {held} is not {self._safe.size} finite numbers")
        self._network.reset()
        self._target[:] = held
        self._flags = 0

    def step(self, observation: Array | Mapping[str, Any]) -> Array:
        """The targets `[U]` for an observation: a buffer of the policy's, valid until the next call.

        Where the observation is not usable the network does not see it and keeps its state, and the targets
        are the safe ones; `flags` says so.

        Args:
            observation: raw values `[D]` in the contract's order, or term name -> its values.

        Raises:
            ObservationError: it has another width, or its terms are not the contract's.
        """
        self._take(observation)
        value, within = self._observation, self._within
        np.greater_equal(value, self._in_low, out=within[0])
        np.less_equal(value, self._in_high, out=within[1])
        # A NaN is within nothing. Bytes compare in a tenth of the time of all().
        if within.tobytes() != self._all_within:
            bad = Flags.NAN_OBSERVATION if np.isnan(value).any() else Flags.OUT_OF_RANGE
            return self.step_to_safe(bad)
        network = self._network
        network.run()
        target = network.target
        if not self._finite(target) or not network.next_states_are_finite():
            return self.step_to_safe(Flags.NAN_TARGET)
        network.commit()
        self._flags = 0
        return self._move(target)

    def step_to_safe(self, flag: Flags) -> Array:
        """A step without an observation: towards the safe target, as fast as the rate limits permit.

        The network's state is kept.

        Args:
            flag: why.
        """
        self._flags = int(flag)
        return self._move(self._safe)

    def hold(self, flag: Flags) -> Array:
        """A step without an observation: the last target again.

        Args:
            flag: why.
        """
        self._flags = int(flag)
        return self._target

    def add_flag(self, flag: Flags) -> None:
        """Add a flag to those of the last step."""
        self._flags |= int(flag)

    def _take(self, observation: Array | Mapping[str, Any]) -> None:
        if isinstance(observation, np.ndarray):
            if observation.shape != self._observation.shape:
                raise ObservationError(
                    f"observation: shape {observation.shape} is not the contract's "
                    f"({self._observation.size},); see its observation terms"
                )
            if observation.dtype == np.float32:
                self._observation[:] = observation
            else:
                _convert(observation, self._observation)
            return
        if not isinstance(observation, Mapping):
            raise ObservationError(
                f"observation: {type(observation).__name__} is neither an array nor terms by name"
            )
        if observation.keys() != self._terms.keys():
            missing = ", ".join(self._terms.keys() - observation.keys()) or "no term"
            extra = ", ".join(observation.keys() - self._terms.keys()) or "none"
            raise ObservationError(
                f"observation: lacks {missing}, has unknown {extra}; see the contract's terms"
            )
        for name, view in self._terms.items():
            try:
                values = np.asarray(observation[name])
            except ValueError as error:
                raise ObservationError(f"observation: {name} is no array of numbers ({error})") from None
            if values.size != view.size:
                raise ObservationError(f"observation: {name} has {values.size} values, not {view.size}")
            _convert(values.reshape(-1), view)

    def _move(self, wanted: Array) -> Array:
        """Set the targets to `wanted`, within their limits and not faster than allowed."""
        target = self._target
        if self._max_change is None:
            np.maximum(wanted, self._out_low, out=target)
            return np.minimum(target, self._out_high, out=target)
        np.subtract(target, self._max_change, out=self._lowest)
        np.add(target, self._max_change, out=self._highest)
        np.maximum(wanted, self._out_low, out=self._wanted)
        np.minimum(self._wanted, self._out_high, out=self._wanted)
        np.maximum(self._wanted, self._lowest, out=target)
        np.minimum(target, self._highest, out=target)
        if target.tobytes() != self._wanted.tobytes():
            self._flags |= Flags.RATE_LIMITED.value
        return target


def _convert(values: np.ndarray, view: Array) -> None:
    # What is too large for float32 becomes infinite, and the range check sees that.
    with np.errstate(over="ignore"):
        try:
            np.copyto(view, values, casting="same_kind")
        except TypeError:
            raise ObservationError(
                f"observation: {values.dtype} is not a kind of number; give float32"
            ) from None


def _term_views(contract: Contract, observation: Array) -> dict[str, Array]:
    views, start = {}, 0
    for term in contract.terms:
        views[term.name] = observation[start : start + term.width]
        start += term.width
    return views


def _per_value(contract: Contract) -> tuple[Array, Array]:
    """Lowest and highest value `[D]`; a term without limits may be any finite number."""
    repeats = [term.width for term in contract.terms]
    low = _limits([term.low for term in contract.terms], -LARGEST)
    high = _limits([term.high for term in contract.terms], LARGEST)
    # A limit beyond float32 must not let infinity pass.
    return np.repeat(low.clip(-LARGEST, LARGEST), repeats), np.repeat(high.clip(-LARGEST, LARGEST), repeats)


def _limits(values: list[float | None], unlimited: float) -> Array:
    with np.errstate(over="ignore"):
        return np.array([unlimited if value is None else value for value in values], np.float32)


def _max_change(contract: Contract, max_rate: float | Array | None) -> Array | None:
    """How much a target may change in one step, `[U]`; None where none is limited."""
    if max_rate is None:
        rate = _limits([joint.max_rate_per_s for joint in contract.joints], np.inf)
    else:
        try:
            rate = np.asarray(max_rate, np.float32)
        except (TypeError, ValueError):
            rate = np.zeros(0, np.float32)
        if rate.shape not in ((), (contract.num_targets,)) or not (rate > 0).all():
            raise RuntimeBundleError(
                f"max_rate: {max_rate} is not above 0 for {contract.num_targets} targets"
            )
        rate = np.broadcast_to(rate, contract.num_targets)
    return None if np.isinf(rate).all() else (rate / contract.control_hz).astype(np.float32)
