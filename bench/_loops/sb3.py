"""Stable-Baselines3's PPO on Gymnasium's tasks, through its own `learn`.

Its process imports nothing of ours but this package, so that none of our settings reaches it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench._loops import Loop
from pi_incubator.errors import UserError

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig

# Our tasks that Gymnasium has too, with the same model, observation and reward.
GYMNASIUM_IDS = {"ant": "Ant-v5"}
ACTIVATIONS = {"tanh": "Tanh", "elu": "ELU", "relu": "ReLU", "silu": "SiLU"}
VEC_ENVS = {"dummy": "DummyVecEnv", "subproc": "SubprocVecEnv"}


def check(cfg: ExperimentConfig) -> None:
    """Check that there is something to compare `cfg` with.

    Raises:
        UserError: Stable-Baselines3 is not installed, or has no counterpart to the task or the algorithm.
    """
    if find_spec("stable_baselines3") is None:
        raise UserError("--peer sb3: not installed; pip install -e '.[peers]', or add --peer none")
    if cfg.env.name not in GYMNASIUM_IDS:
        known = ", ".join(GYMNASIUM_IDS)
        raise UserError(
            f"env.name = {cfg.env.name!r}: Gymnasium has no such task for --peer sb3; "
            f"take one of: {known}, or add --peer none"
        )
    if (cfg.algorithm.name, cfg.network.name) != ("ppo", "mlp"):
        raise UserError(
            f"algorithm.name = {cfg.algorithm.name!r}, network.name = {cfg.network.name!r}: "
            "--peer sb3 compares ppo with an mlp only; set them so, or add --peer none"
        )


def default_settings(cfg: ExperimentConfig) -> dict[str, Any]:
    """What `make` reads for PPO as it comes: one env, every hyperparameter left alone."""
    return {
        "gymnasium_id": GYMNASIUM_IDS[cfg.env.name],
        "num_envs": 1,
        "vec_env": VEC_ENVS["dummy"],
        "seed": cfg.experiment.seed,
        "ppo": {},
        "network": {},
    }


def same_settings(cfg: ExperimentConfig, vec_env: str) -> dict[str, Any]:
    """What `make` reads for the hyperparameters of `cfg`; `vec_env` is a key of VEC_ENVS."""
    ours = cfg.algorithm
    ppo = {
        "n_steps": ours.horizon,
        "batch_size": ours.minibatch_size,
        "n_epochs": ours.num_epochs,
        "learning_rate": ours.lr,
        "gamma": ours.gamma,
        "gae_lambda": ours.gae_lambda,
        "clip_range": ours.clip_ratio,
        "ent_coef": ours.entropy_coef,
        "vf_coef": ours.value_coef,
        "max_grad_norm": ours.max_grad_norm,
        "normalize_advantage": ours.normalize_advantage,
    }
    network = {
        "net_arch": list(cfg.network.hidden_sizes),
        "activation": ACTIVATIONS[cfg.network.activation],
        "log_std_init": cfg.network.init_log_std,
    }
    envs = {"num_envs": cfg.env.num_envs, "vec_env": VEC_ENVS[vec_env]}
    return default_settings(cfg) | envs | {"ppo": ppo, "network": network}


def describe(facts: dict[str, Any]) -> str:
    """What the loop with these `facts` is, in a line."""
    envs = f"{facts['num_envs']} env x {facts['n_steps']} steps in {facts['vec_env']}"
    learning = f"{facts['n_epochs']} epochs, minibatches of {facts['batch_size']}"
    return f"sb3: PPO {facts['version']}: {envs}, {learning}, {facts['torch_threads']} torch threads"


class Sb3Loop(Loop):
    """One iteration is a `learn` call for one rollout: collection and the update on it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import stable_baselines3
        import torch
        from stable_baselines3 import PPO
        from stable_baselines3.common import env_util, vec_env

        self.env = env_util.make_vec_env(
            settings["gymnasium_id"],
            n_envs=settings["num_envs"],
            seed=settings["seed"],
            vec_env_cls=getattr(vec_env, settings["vec_env"]),
        )
        network = dict(settings["network"])
        if "activation" in network:
            network["activation_fn"] = getattr(torch.nn, network.pop("activation"))
        self.model = PPO(
            "MlpPolicy",
            self.env,
            device="cpu",
            seed=settings["seed"],
            policy_kwargs=network or None,
            **settings["ppo"],
        )
        self.env_steps = self.model.n_steps * self.env.num_envs
        self.facts = {
            "version": stable_baselines3.__version__,
            "vec_env": settings["vec_env"],
            "torch_threads": torch.get_num_threads(),
            "num_parameters": sum(parameter.numel() for parameter in self.model.policy.parameters()),
            "num_envs": self.env.num_envs,
            "n_steps": self.model.n_steps,
            "batch_size": self.model.batch_size,
            "n_epochs": self.model.n_epochs,
        }

    def iterate(self) -> int:
        self.model.learn(self.env_steps, reset_num_timesteps=False)
        return self.env_steps


def make(settings: dict[str, Any]) -> Sb3Loop:
    """The loop that `default_settings` or `same_settings` describes."""
    return Sb3Loop(settings)
