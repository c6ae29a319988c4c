"""What a family of envs offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from envs_gpu.registry import UnknownNameError
from envs_gpu.zoo._episode_book import ZooEnv


class Family(ABC):
    """Envs that one package brings; nothing of the package is imported before a method needs it."""

    modules: ClassVar[tuple[str, ...]]
    """What must be importable."""
    install: ClassVar[str]
    """How to install it, as one command or sentence."""
    on_cuda: ClassVar[bool]
    """Whether the worlds can live on a GPU."""
    uses_jax: ClassVar[bool] = False

    @abstractmethod
    def names(self) -> list[str]:
        """Every env that can be made, sorted; empty where the package does not tell before it has started."""

    def check_name(self, name: str) -> None:
        """Check that there is an env `name`, as far as the package tells.

        Raises:
            UnknownNameError: there is none; the message suggests the nearest.
            ZooError: it cannot be looked up here.
        """
        known = self.names()
        if known and name not in known:
            raise UnknownNameError("env", name, known)

    @abstractmethod
    def make(self, name: str, num_envs: int, device: torch.device, seed: int, first_world: int) -> ZooEnv:
        """`num_envs` worlds of the env `name`; see `envs_gpu.make.make_env` for the arguments.

        Raises:
            ZooError: the env has actions or observations that a policy here cannot handle.
        """
