"""Stable-Baselines3's PPO on Gymnasium's tasks, through its own `learn`.

Its process imports nothing of ours but this package, so that none of our settings reaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench._loops import RECENT_EPISODES, ScoredLoop
from bench._loops._peer import GYMNASIUM_IDS, Peer, Settings, horizon_for, ppo_with_mlp

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig

ACTIVATIONS = {"tanh": "Tanh", "elu": "ELU", "relu": "ReLU", "silu": "SiLU"}
VEC_ENVS = {"dummy": "DummyVecEnv", "subproc": "SubprocVecEnv"}
MINIBATCHES = (
    8  # of a rollout where the batch is sized; the default of 64 samples is what slows many envs down
)


def default_settings(cfg: ExperimentConfig) -> Settings:
    """What `make` reads for PPO as it comes: one env, every hyperparameter left alone."""
    return {
        "gymnasium_id": GYMNASIUM_IDS[cfg.env.name],
        "num_envs": 1,
        "vec_env": VEC_ENVS["dummy"],
        "seed": cfg.experiment.seed,
        "ppo": {},
        "network": {},
    }


def sized_settings(cfg: ExperimentConfig, num_envs: int) -> Settings:
    """The defaults but for the number of envs, and a rollout and minibatches to suit it."""
    horizon = horizon_for(num_envs)
    ppo = {"n_steps": horizon, "batch_size": num_envs * horizon // MINIBATCHES}
    return default_settings(cfg) | {"num_envs": num_envs, "ppo": ppo}


def same_settings(cfg: ExperimentConfig) -> Settings:
    """What `make` reads for the hyperparameters of `cfg`."""
    ours, mlp = ppo_with_mlp(cfg)
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
        "net_arch": list(mlp.hidden_sizes),
        "activation": ACTIVATIONS[mlp.activation],
        "log_std_init": mlp.init_log_std,
    }
    return default_settings(cfg) | {"num_envs": cfg.env.num_envs, "ppo": ppo, "network": network}


def describe(facts: dict[str, Any]) -> str:
    """What the loop with these `facts` is, in a line."""
    envs = f"{facts['num_envs']} env x {facts['n_steps']} steps in {facts['vec_env']}"
    learning = f"{facts['n_epochs']} epochs, minibatches of {facts['batch_size']}"
    return f"PPO {facts['version']}: {envs}, {learning}, {facts['torch_threads']} torch threads"


PEER = Peer(
    modules=("stable_baselines3",),
    describe=describe,
    default=default_settings,
    sized=sized_settings,
    sizes=(8, 64, 256),
    same=same_settings,
    tells_returns=True,
)


class StableBaselinesLoop(ScoredLoop):
    """One iteration is a `learn` call for one rollout: collection and the update on it.

    Args:
        settings: what `default_settings` and its siblings give.
        package: `stable_baselines3`, or one that has its PPO with the same arguments.
        activations: the module that has the package's activation functions.
    """

    def __init__(self, settings: Settings, package: Any, activations: Any) -> None:
        import torch
        from stable_baselines3.common import env_util, vec_env

        self.env = env_util.make_vec_env(
            settings["gymnasium_id"],
            n_envs=settings["num_envs"],
            seed=settings["seed"],
            vec_env_cls=getattr(vec_env, settings["vec_env"]),
        )
        network = dict(settings["network"])
        if "activation" in network:
            network["activation_fn"] = getattr(activations, network.pop("activation"))
        self.model = package.PPO(
            "MlpPolicy",
            self.env,
            device="cpu",
            seed=settings["seed"],
            policy_kwargs=network or None,
            **settings["ppo"],
        )
        self.env_steps = self.model.n_steps * self.env.num_envs
        self.facts = {
            "version": package.__version__,
            "vec_env": settings["vec_env"],
            "torch_threads": torch.get_num_threads(),
            "num_envs": self.env.num_envs,
            "n_steps": self.model.n_steps,
            "batch_size": self.model.batch_size,
            "n_epochs": self.model.n_epochs,
        }

    def iterate(self) -> int:
        self.model.learn(self.env_steps, reset_num_timesteps=False)
        return self.env_steps

    def recent_return(self) -> float | None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]  # the last 100
        return sum(returns) / len(returns) if len(returns) >= RECENT_EPISODES else None


def make(settings: Settings) -> ScoredLoop:
    """The loop that one of the settings functions describes."""
    import stable_baselines3
    import torch

    loop = StableBaselinesLoop(settings, stable_baselines3, torch.nn)
    loop.facts["num_parameters"] = sum(weight.numel() for weight in loop.model.policy.parameters())
    return loop
