"""FlashSAC as its authors have it (Kim et al. 2026, arXiv 2604.04539), on Gymnasium's tasks.

Its code is not a package: clone github.com/Holiday-Robot/FlashSAC, and put the folder into PYTHONPATH.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from bench._loops import RECENT_EPISODES, ScoredLoop
from bench._loops._off_policy import (
    MIN_ITERATION_STEPS,
    OffPolicyPeer,
    default_settings,
    describe,
    same_settings,
)
from bench._loops._peer import Settings

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig

# Of its configs/agent/flashSAC.yaml and, for Gymnasium's tasks, scripts/run_mujoco.sh.
DEFAULTS: dict[str, Any] = {
    "buffer_max_length": 1_000_000,
    "buffer_min_length": 10_000,
    "sample_batch_size": 512,
    "normalize_reward": True,
    "normalized_G_max": 5.0,
    "asymmetric_observation": False,
    "learning_rate_init": 3e-4,
    "learning_rate_peak": 3e-4,
    "learning_rate_end": 1.5e-4,
    "learning_rate_warmup_rate": 1e-6,
    "learning_rate_warmup_step": 1,
    "learning_rate_decay_rate": 1.0,
    "learning_rate_decay_step": 1_000_000,
    "actor_num_blocks": 2,
    "actor_hidden_dim": 128,
    "actor_bc_alpha": 0.0,
    "actor_noise_zeta_mu": 2.0,
    "actor_noise_zeta_max": 16,
    "actor_update_period": 2,
    "critic_num_blocks": 2,
    "critic_hidden_dim": 256,
    "critic_num_bins": 101,
    "critic_min_v": -5.0,
    "critic_max_v": 5.0,
    "critic_target_update_tau": 0.01,
    "temp_initial_value": 0.01,
    "temp_target_sigma": 0.15,
    "temp_target_entropy": 0.0,  # the agent computes it
    "gamma": 0.99,
    "n_step": 1,
    "use_compile": True,
    "compile_mode": "auto",
    "use_amp": False,
    "load_optimizer": True,
    "load_reward_normalizer": True,
}
# Ours -> theirs.
NAMES = {
    "batch_size": "sample_batch_size",
    "buffer_size": "buffer_max_length",
    "learning_starts": "buffer_min_length",
    "gamma": "gamma",
    "tau": "critic_target_update_tau",
}


def _same(cfg: ExperimentConfig) -> Settings:
    """Worlds, updates and batch of `cfg`, and where it has FlashSAC's network, its widths."""
    from pi_incubator.config.networks.flash import FlashSettings

    settings = same_settings(cfg)
    if isinstance(cfg.network, FlashSettings):
        settings["networks"] = {
            "actor_hidden_dim": cfg.network.actor_width,
            "critic_hidden_dim": cfg.network.critic_width,
            "actor_num_blocks": cfg.network.num_blocks,
            "critic_num_blocks": cfg.network.num_blocks,
        }
    return settings


PEER = OffPolicyPeer(
    modules=("flash_rl", "omegaconf", "gymnasium"),
    describe=describe,
    default=default_settings,
    same=_same,
    tells_returns=True,
    install="clone github.com/Holiday-Robot/FlashSAC into PYTHONPATH, pip install omegaconf",
)


class FlashSACLoop(ScoredLoop):
    """One iteration is some rounds of collection and updates, as in its train.py."""

    def __init__(self, settings: Settings) -> None:
        import gymnasium
        import torch
        from flash_rl.agents.flashSAC.agent import FlashSACAgent, FlashSACConfig

        numbers, num_envs = settings["numbers"], settings["num_envs"]
        torch.manual_seed(settings["seed"])
        self.env = gymnasium.make_vec(
            settings["gymnasium_id"],
            num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
            wrappers=[lambda env: gymnasium.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))],
        )
        chosen = {theirs: numbers[ours] for ours, theirs in NAMES.items() if ours in numbers}
        chosen |= settings.get("networks", {})
        devices = {"seed": settings["seed"], "device_type": "cpu", "buffer_device_type": "cpu"}
        self.config = FlashSACConfig(**(DEFAULTS | chosen | devices))
        self.agent = FlashSACAgent(
            self.env.observation_space, self.env.action_space, env_info={}, cfg=self.config
        )
        self.horizon, self.updates_per_round = numbers.get("horizon", 1), numbers.get("num_updates", 1)
        round_steps = num_envs * self.horizon
        self.rounds = -(-MIN_ITERATION_STEPS // round_steps)
        self.env_steps = self.rounds * round_steps
        self.transition: dict[str, Any] | None = None
        self.obs = self.env.reset(seed=settings["seed"])[0]
        self.env.action_space.seed(settings["seed"])
        self.running = np.zeros(num_envs)
        self.returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._num_updates = 0
        self.facts = {
            "name": "FlashSAC's own code on Gymnasium",
            "version": gymnasium.__version__,
            "vec_env": type(self.env).__name__,
            "torch_threads": torch.get_num_threads(),
            "num_envs": num_envs,
            "steps_between_updates": round_steps,
            "num_updates": self.updates_per_round,
            "batch_size": self.config.sample_batch_size,
            "hidden_sizes": [self.config.actor_hidden_dim, self.config.critic_hidden_dim],
        }

    def iterate(self) -> int:
        for _ in range(self.rounds):
            for _ in range(self.horizon):
                self._collect()
            if self.agent.can_start_training():
                for _ in range(self.updates_per_round):
                    self.agent.update()
                    self._num_updates += 1
        return self.env_steps

    def warm_up(self) -> None:
        while self.num_updates < 2 * self.config.actor_update_period:
            self.iterate()
        self.iterate()

    @property
    def num_updates(self) -> int:
        return self._num_updates

    def recent_return(self) -> float | None:
        return sum(self.returns) / len(self.returns) if len(self.returns) == RECENT_EPISODES else None

    def _collect(self) -> None:
        """A step of every env."""
        if self.transition is not None and self.agent.can_start_training():
            action = self.agent.sample_actions(0, prev_transition=self.transition, training=True)
        else:
            action = self.env.action_space.sample()
        next_obs, reward, terminated, truncated, about = self.env.step(action)
        last_obs, done = next_obs.copy(), terminated | truncated
        for i in np.flatnonzero(done):
            last_obs[i] = about["final_obs"][i]
        transition = {
            "observation": self.obs,
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "next_observation": last_obs,
        }
        self.agent.process_transition(transition)
        self.transition = {"next_observation": next_obs}
        self.running += reward
        self.returns.extend(self.running[done])
        self.running[done] = 0.0
        self.obs = next_obs


def make(settings: Settings) -> ScoredLoop:
    """The loop that `default_settings` or `_same` describes."""
    return FlashSACLoop(settings)
