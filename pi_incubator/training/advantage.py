"""Our advantage kernel as a TorchRL value estimator, and rollouts as it takes them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch, set_skip_existing, skip_existing
from torch import Tensor
from torch.distributed import ProcessGroup
from torchrl.objectives import LossModule
from torchrl.objectives.value import GAE

from kernels.gae import gae


class KernelGAE(GAE):
    """TorchRL's `GAE` with its recursion computed by `kernels.gae`.

    For a rollout whose values are known already, batch `[T, N]` and entries `[T, N, 1]`:

        loss.make_value_estimator(KernelGAE, gamma=0.99, lmbda=0.95, time_dim=0)
        loss.value_estimator(rollout)

    reads `state_value` and `next`'s `state_value`, `reward`, `done`, `terminated`, and writes `advantage` and
    `value_target`, `[T, N, 1]` float32. Contiguous entries with time first are not copied; any other layout
    is. With a `value_network` the values are computed first, unless `skip_existing=True` finds both of them.

    Keys, shapes, `time_dim`, `average_gae`, `group_key` and the value network's options are TorchRL's.

    Args:
        gamma: discount factor.
        lmbda: weight of the longer estimates.
        value_network: computes the missing values; None reads both from the tensordict.
        normalize: let the kernel normalize the advantage in the same pass, over the whole batch.
        mask_key: `[T, N, 1]` bool; where it is false an entry counts for no moment, and its normalized
            advantage is 0. None keeps all.
        group: normalizes over all ranks of this process group; None over this process alone.
        implementation: as for `kernels.gae.gae`.
        **options: of `torchrl.objectives.value.GAE`.

    Raises:
        ValueError: an option that the kernel does not cover.
    """

    def __init__(
        self,
        *,
        gamma: float | Tensor,
        lmbda: float | Tensor,
        value_network: TensorDictModuleBase | None = None,
        normalize: bool = False,
        mask_key: str | None = None,
        group: ProcessGroup | None = None,
        implementation: str = "auto",
        **options: Any,
    ) -> None:
        if normalize and options.get("average_gae"):
            raise ValueError("KernelGAE: normalize and average_gae both normalize; leave one of them")
        for name in ("differentiable", "shifted", "auto_reset_env", "vectorized"):
            if options.get(name):
                raise ValueError(
                    f"KernelGAE: {name}={options[name]} is not supported; use torchrl's GAE for it"
                )
        super().__init__(gamma=gamma, lmbda=lmbda, value_network=value_network, **options)
        self.normalize, self.mask_key = normalize, mask_key
        self.group, self.implementation = group, implementation
        self._read_from: tuple[Tensor, int, Tensor, int] | None = None

    @dispatch
    @torch.no_grad()
    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
        time_dim: int | None = None,
    ) -> TensorDictBase:
        """Write the advantage and the value target into `tensordict`, and return it.

        Raises:
            KeyError: a value is missing and there is no value network.
            ValueError: multi-step rewards, or entries of different shapes.
        """
        keys = self.tensor_keys
        if tensordict.get(keys.steps_to_next_obs, None) is not None:
            raise ValueError("KernelGAE: multi-step rewards are not supported; use torchrl's GAE for them")
        value, next_value = self._values(tensordict, params, target_params)
        reward, done = tensordict.get(("next", keys.reward)), tensordict.get(("next", keys.done))
        terminated = tensordict.get(("next", keys.terminated), default=done)
        reward, done, terminated = self._prepare_signals(reward, done, terminated, value)

        time_dim = self._get_time_dim(time_dim, tensordict)
        gamma, lmbda = self._discounts()
        mask = None if self.mask_key is None else _time_first(tensordict.get(self.mask_key), time_dim)
        *results, _ = gae(
            _time_first(reward, time_dim),
            _time_first(value, time_dim),
            _time_first(next_value, time_dim),
            _time_first(terminated, time_dim),
            _time_first(done, time_dim),
            gamma,
            lmbda,
            normalize=self.normalize,
            mask=mask,
            group=self.group,
            implementation=self.implementation,
        )
        shape = value.movedim(time_dim, 0).shape  # [T, ...]
        advantage, value_target = (result.view(shape).movedim(0, time_dim) for result in results)

        if self.average_gae:
            advantage = self._normalize_advantage(advantage, groups=self._group_ids(tensordict))
        tensordict.set(keys.advantage, advantage)
        tensordict.set(keys.value_target, value_target)
        return tensordict

    def _values(
        self, tensordict: TensorDictBase, params: TensorDictBase | None, target_params: TensorDictBase | None
    ) -> tuple[Tensor, Tensor]:
        """`state_value` and `next`'s `state_value`, read or computed."""
        key = self.tensor_keys.value
        skip = skip_existing() if self.skip_existing is None else self.skip_existing
        known = tensordict.get(key, None), tensordict.get(("next", key), None)
        if self.value_network is None:
            if known[0] is None or known[1] is None:
                raise KeyError(
                    f"KernelGAE: {key!r} or ('next', {key!r}) is missing, and there is no value_network"
                )
            return known
        if skip and known[0] is not None and known[1] is not None:
            return known
        if params is not None:
            params = params.detach()
            target_params = params.clone(False) if target_params is None else target_params
        with set_skip_existing(skip):
            value, next_value, _ = self._call_value_nets(
                data=tensordict,
                params=params,
                next_params=target_params,
                single_call=False,
                value_key=key,
                detach_next=True,
                vmap_randomness=self.vmap_randomness,
            )
        return value, next_value

    def _discounts(self) -> tuple[float, float]:
        """gamma and lambda as floats, read from the device only after they changed: a read waits for it."""
        current = (self.gamma, self.gamma._version, self.lmbda, self.lmbda._version)
        seen = self._read_from
        if seen is None or any(a is not b for a, b in zip(seen, current, strict=True)):
            self._read_from = current
            self._floats = float(self.gamma), float(self.lmbda)
        return self._floats


class AdvantageSettings(Protocol):
    """Settings of an algorithm that estimates advantages."""

    gamma: float
    gae_lambda: float
    normalize_advantage: bool


def use_kernel_gae(loss: LossModule, settings: AdvantageSettings, group: ProcessGroup | None) -> None:
    """Let `loss.value_estimator` be `KernelGAE` for rollouts with time first and the entry `valid`."""
    loss.make_value_estimator(
        KernelGAE,
        gamma=settings.gamma,
        lmbda=settings.gae_lambda,
        time_dim=0,
        normalize=settings.normalize_advantage,
        mask_key="valid",
        group=group,
    )


def bootstrap_broken_steps(data: TensorDictBase, reward_scale: float) -> None:
    """Scale the rewards of a rollout, and give to broken steps the value of their state as reward.

    So the advantage of a broken step is zero, and earlier steps are bootstrapped with that value, as if the
    episode had been truncated there. In place, once a rollout: what is reported was summed by the env,
    unscaled.
    """
    reward = data["next", "reward"]
    reward.mul_(reward_scale)
    reward.copy_(torch.where(data["valid"], reward, data["state_value"]))


def _time_first(tensor: Tensor, time_dim: int) -> Tensor:
    """`[T, N]`, everything but the time made one dimension: a view where time is first already."""
    return tensor.movedim(time_dim, 0).flatten(1)
