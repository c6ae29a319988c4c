"""Judge a policy over whole episodes, without the bias of whichever episodes happen to end first.

Letters: N worlds, A actions, D observation width, K episodes of the busiest world, M metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pi_incubator.evaluation.acting import Act, Acting, as_actor

if TYPE_CHECKING:
    from envs_gpu.vec_env import StepResult, VecEnv

# Asking a GPU whether everybody is done stalls it, so it is asked once in so many steps.
STEPS_BETWEEN_CHECKS_CUDA = 64

Summary = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured, one number an episode."""

    episodes: dict[str, Tensor]
    """Name -> `[num_episodes]` float64 on the CPU, world by world. `return` and `length` (control steps),
    the sum over the episode of each `reward/...` term, and the mean over the episode of each measure."""

    @property
    def num_episodes(self) -> int:
        return len(self.episodes["return"])

    def summary(self) -> Summary:
        """Name -> `mean`, `std` (of the episodes, not of their mean), `min` and `max`."""
        return {name: _statistics(values) for name, values in self.episodes.items()}


@torch.no_grad()
def evaluate(env: VecEnv, policy: Acting | Act, num_episodes: int, seed: int) -> Evaluation:
    """Run the deterministic policy for exactly `num_episodes` complete episodes of freshly reset worlds.

    Every world contributes its first `num_episodes / N` episodes (where that is not whole, the first worlds
    one more): how many is settled before any is run, so short episodes are not over-represented.

    Args:
        env: is reset, and left in the middle of something.
        policy: a policy, or a function from observation groups to actions `[N, A]`.
        num_episodes: at least 1.
        seed: of the worlds.

    Raises:
        ValueError: `num_episodes` is below 1.
        BrokenWorldsError: so many worlds blew up that the numbers say nothing.
        RuntimeError: an episode went on for longer than `env.spec.max_episode_steps`.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes = {num_episodes}: must be at least 1")
    actor = as_actor(policy, env.num_envs)
    obs = env.reset(seed)
    ledger = _Ledger(env.num_envs, num_episodes, env.device)
    check_every = STEPS_BETWEEN_CHECKS_CUDA if env.device.type == "cuda" else 1
    for step in range(1, ledger.max_episodes * env.spec.max_episode_steps + 1):
        result = env.step(actor.act(obs))
        actor.observe(result)
        obs = result.obs
        ledger.add(result)
        if step % check_every == 0 and ledger.complete:
            break
    env.pop_metrics()  # reports what found no room
    env.check()
    return ledger.close()


@torch.no_grad()
def record_observations(
    env: VecEnv, policy: Acting | Act, count: int, seed: int, groups: Sequence[str] = ("policy",)
) -> dict[str, Tensor]:
    """What the deterministic policy sees of `groups` on its way, each `[count, D]` (or pixels) on the CPU.

    Few worlds and many steps, so that the whole of an episode is there and not only its beginning.
    """
    actor = as_actor(policy, env.num_envs)
    obs = env.reset(seed)
    num_worlds = min(env.num_envs, max(1, count // 100))
    rows: dict[str, list[Tensor]] = {group: [] for group in groups}
    for _ in range(-(-count // num_worlds)):
        for group in groups:
            rows[group].append(obs[group][:num_worlds].clone())
        result = env.step(actor.act(obs))
        actor.observe(result)
        obs = result.obs
    return {group: torch.cat(seen)[:count].cpu() for group, seen in rows.items()}


class _Ledger:
    """Accumulates every world's running episode and files those that count, on the worlds' device."""

    def __init__(self, num_envs: int, num_episodes: int, device: torch.device) -> None:
        self.world = torch.arange(num_envs, device=device)  # [N]
        whole, rest = divmod(num_episodes, num_envs)
        self.quota = whole + (self.world < rest).long()  # [N]
        self.max_episodes = whole + (rest > 0)  # K
        self.count = torch.zeros_like(self.world)  # [N]
        self.names: list[str] = []
        self.running: Tensor | None = None  # [M, N]: return, length, metrics, summed over the episode so far
        self.filed: Tensor | None = None  # [M, N, K]

    def add(self, result: StepResult) -> None:
        """Account for one step of every world."""
        done = result.terminated | result.truncated
        values = {"return": result.reward, "length": torch.ones_like(result.reward)} | result.metrics
        step = torch.stack([value.double() for value in values.values()])
        if self.running is None or self.filed is None:
            self.names = list(values)
            self.running = torch.zeros_like(step)
            self.filed = step.new_zeros(*step.shape, self.max_episodes)
        self.running += step
        slot = self.count.clamp(max=self.max_episodes - 1)
        counts = done & (self.count < self.quota)
        self.filed[:, self.world, slot] = torch.where(counts, self.running, self.filed[:, self.world, slot])
        self.count += done
        # Not by multiplication: what a world that went NaN leaves behind ends with its episode.
        self.running.masked_fill_(done, 0.0)

    @property
    def complete(self) -> bool:
        """Whether every world has filed its quota: one host sync."""
        return bool((self.count >= self.quota).all())

    def close(self) -> Evaluation:
        """The episodes that counted, world by world: the only transfer to the host."""
        if self.filed is None or not self.complete:
            raise RuntimeError("the env does not end its episodes after spec.max_episode_steps")
        counted = torch.arange(self.max_episodes, device=self.quota.device) < self.quota[:, None]  # [N, K]
        episodes = dict(zip(self.names, self.filed[:, counted].cpu().unbind(), strict=True))
        length = episodes["length"]
        for name in self.names[2:]:
            if not name.startswith("reward/"):
                episodes[name] = episodes[name] / length
        return Evaluation(episodes)


def _statistics(values: Tensor) -> dict[str, float]:
    return {
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "min": values.min().item(),
        "max": values.max().item(),
    }
