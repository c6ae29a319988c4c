"""What a peer's loop says of itself to the process that compares: with what it can be compared, and how.

The files of peers import nothing heavy at their top, so that asking costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig
    from pi_incubator.config.algorithms.ppo import PPOSettings
    from pi_incubator.config.networks.mlp import MLPSettings

Settings = dict[str, Any]
INSTALL = "pip install -e '.[peers]'"

# Our tasks that Gymnasium has too, with the same model, observation and reward.
GYMNASIUM_IDS = {
    "ant": "Ant-v5",
    "half_cheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
    "inverted_pendulum": "InvertedPendulum-v5",
    "reacher": "Reacher-v5",
    "swimmer": "Swimmer-v5",
    "walker2d": "Walker2d-v5",
}


@dataclass(frozen=True)
class Peer:
    """A loop of another project."""

    modules: tuple[str, ...]
    """What must be importable."""
    describe: Callable[[dict[str, Any]], str]
    """The loop with these facts, in a line."""
    default: Callable[[ExperimentConfig], Settings] | None
    """Settings for the loop's `make` at the peer's own defaults; None where nobody would use those."""
    sized: Callable[[ExperimentConfig, int], Settings] | None = None
    """The same with so many worlds and a batch to suit them; None where no sweep does that."""
    sizes: tuple[int, ...] = ()
    """Numbers of worlds among which a sweep looks for the fastest."""
    same: Callable[[ExperimentConfig], Settings] | None = None
    """Settings with the hyperparameters of a config; None where the peer cannot have them."""
    tasks: Mapping[str, str] = field(default_factory=lambda: GYMNASIUM_IDS)
    """Our task -> the peer's name for it."""
    family: str = "Gymnasium"
    """Where those names are from."""
    same_physics: bool = True
    """Whether it simulates the model that we simulate."""
    tells_returns: bool = False
    """Whether its loop is a `ScoredLoop`."""
    install: str = INSTALL
    is_named_only: bool = False
    """Whether there is no loop of it here: a comparison says so instead of leaving it out in silence."""

    def lacks(self, cfg: ExperimentConfig) -> tuple[str, str] | None:
        """Why there is nothing to compare `cfg` with, and what to do about it; None where there is."""
        if any(find_spec(name) is None for name in self.modules):
            return "not installed", self.install
        if self.is_named_only:
            return "installed, but pi-bench has no loop for it", "measure it with its own script"
        if cfg.env.name not in self.tasks:
            known = ", ".join(self.tasks)
            return f"env.name = {cfg.env.name!r}: {self.family} has no such task", f"take one of: {known}"
        return self.misfit(cfg)

    def misfit(self, cfg: ExperimentConfig) -> tuple[str, str] | None:
        """As `lacks`, of algorithm and network alone."""
        if (cfg.algorithm.name, cfg.network.name) != ("ppo", "mlp"):
            names = f"algorithm.name = {cfg.algorithm.name!r}, network.name = {cfg.network.name!r}"
            return f"{names}: only ppo with an mlp is compared", "set them so"
        return None


def ppo_with_mlp(cfg: ExperimentConfig) -> tuple[PPOSettings, MLPSettings]:
    """The settings of algorithm and network, of a config that `Peer.lacks` has not refused."""
    return cast("PPOSettings", cfg.algorithm), cast("MLPSettings", cfg.network)


def same_numbers(cfg: ExperimentConfig) -> Settings:
    """The hyperparameters of `cfg` by our names, for the peers whose training loop is in this package."""
    names = (
        *("horizon", "minibatch_size", "num_epochs", "lr", "gamma", "gae_lambda", "clip_ratio"),
        *("entropy_coef", "value_coef", "max_grad_norm", "normalize_advantage"),
    )
    ppo, mlp = ppo_with_mlp(cfg)
    network = {
        "hidden_sizes": list(mlp.hidden_sizes),
        "activation": mlp.activation,
        "init_log_std": mlp.init_log_std,
        "normalize_observations": False,
    }
    return {name: getattr(ppo, name) for name in names} | network


def horizon_for(num_envs: int, rollout_size: int = 2048, shortest: int = 32) -> int:
    """Steps of each world in a rollout of `rollout_size` samples, but no fewer than `shortest`."""
    return max(shortest, rollout_size // num_envs)
