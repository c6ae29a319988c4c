"""TorchRL's own pieces, put together as its PPO example for MuJoCo does: collector, GAE, ClipPPOLoss.

Source: Bou et al. 2023, "TorchRL: A data-driven decision-making library for PyTorch".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bench._loops import Loop
from bench._loops._peer import GYMNASIUM_IDS, Peer, Settings, horizon_for, same_numbers

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig

# The numbers of TorchRL's PPO example for MuJoCo, by our names.
EXAMPLE = {
    "horizon": 2048,
    "minibatch_size": 64,
    "num_epochs": 10,
    "lr": 3e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_ratio": 0.2,
    "entropy_coef": 0.0,
    "value_coef": 0.25,
    "max_grad_norm": None,
    "normalize_advantage": True,
    "hidden_sizes": [64, 64],
    "activation": "tanh",
    "init_log_std": 0.0,
    "normalize_observations": True,
}
MINIBATCHES = 8  # of a rollout where the batch is sized
ACTIVATIONS = {"tanh": "Tanh", "elu": "ELU", "relu": "ReLU", "silu": "SiLU"}


def default_settings(cfg: ExperimentConfig) -> Settings:
    """The example as it comes: one GymEnv."""
    return {
        "gymnasium_id": GYMNASIUM_IDS[cfg.env.name],
        "num_envs": 1,
        "seed": cfg.experiment.seed,
        "ppo": EXAMPLE,
    }


def sized_settings(cfg: ExperimentConfig, num_envs: int) -> Settings:
    """The example on a SerialEnv, with a rollout and minibatches to suit it.

    Not on a ParallelEnv: one of two envs did not get through its first batch in 40 s on two busy cores.
    """
    horizon = horizon_for(num_envs)
    sizes = {"horizon": horizon, "minibatch_size": num_envs * horizon // MINIBATCHES}
    # One thread: the minibatches are too small to split, and barriers stall.
    return default_settings(cfg) | {"num_envs": num_envs, "ppo": EXAMPLE | sizes, "torch_threads": 1}


def same_settings(cfg: ExperimentConfig) -> Settings:
    """The hyperparameters of `cfg`."""
    return default_settings(cfg) | {"num_envs": cfg.env.num_envs, "ppo": same_numbers(cfg)}


def describe(facts: dict[str, Any]) -> str:
    """What the loop with these `facts` is, in a line."""
    envs = f"{facts['num_envs']} env x {facts['horizon']} steps in {facts['env']}"
    learning = f"{facts['num_epochs']} epochs, minibatches of {facts['minibatch_size']}"
    threads = f"{facts['torch_threads']} torch threads"
    return f"{facts['version']}: {facts['collector']}, {envs}, {learning}, {threads}"


PEER = Peer(
    modules=("torchrl", "gymnasium"),
    describe=describe,
    default=default_settings,
    sized=sized_settings,
    sizes=(8, 64),
    same=same_settings,
)


class TorchRLLoop(Loop):
    """One iteration is one batch of the collector and the update on it."""

    def __init__(self, settings: Settings) -> None:
        import torch
        import torchrl
        from torchrl.collectors import Collector
        from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
        from torchrl.objectives import ClipPPOLoss
        from torchrl.objectives.value import GAE

        torch.manual_seed(settings["seed"])
        if "torch_threads" in settings:
            torch.set_num_threads(settings["torch_threads"])
        self.ppo = ppo = settings["ppo"]
        env = _make_env(settings)
        actor, critic = _make_networks(env, ppo)
        self.env_steps = settings["num_envs"] * ppo["horizon"]
        self.collector = Collector(env, actor, frames_per_batch=self.env_steps, total_frames=-1)
        self.batches = iter(self.collector)
        self.advantage = GAE(gamma=ppo["gamma"], lmbda=ppo["gae_lambda"], value_network=critic)
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(self.env_steps),
            sampler=SamplerWithoutReplacement(),
            batch_size=ppo["minibatch_size"],
        )
        self.loss = ClipPPOLoss(
            actor,
            critic,
            clip_epsilon=ppo["clip_ratio"],
            entropy_coeff=ppo["entropy_coef"],
            critic_coeff=ppo["value_coef"],
            loss_critic_type="l2",
            functional=False,
            normalize_advantage=ppo["normalize_advantage"],
        )
        self.parameters = list(self.loss.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=ppo["lr"], eps=1e-5)
        self.facts = {
            "version": torchrl.__version__,
            "env": "GymEnv" if settings["num_envs"] == 1 else "SerialEnv(GymEnv)",
            "collector": Collector.__name__,
            "torch_threads": torch.get_num_threads(),
            "num_envs": settings["num_envs"],
            "num_parameters": sum(weight.numel() for weight in self.parameters),
            **{name: ppo[name] for name in ("horizon", "num_epochs", "minibatch_size")},
        }

    def iterate(self) -> int:
        import torch

        data = next(self.batches)
        for _ in range(self.ppo["num_epochs"]):
            with torch.no_grad():
                data = self.advantage(data)
            self.buffer.extend(data.reshape(-1))
            for minibatch in self.buffer:
                losses = self.loss(minibatch)
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                loss.backward()
                if self.ppo["max_grad_norm"] is not None:
                    torch.nn.utils.clip_grad_norm_(self.parameters, self.ppo["max_grad_norm"])
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.collector.update_policy_weights_()
        return self.env_steps


def _make_env(settings: Settings) -> Any:
    from torchrl.envs import (
        ClipTransform,
        Compose,
        DoubleToFloat,
        GymEnv,
        RewardSum,
        SerialEnv,
        StepCounter,
        TransformedEnv,
        VecNormV2,
    )

    task, num_envs = settings["gymnasium_id"], settings["num_envs"]
    env: Any = GymEnv(task) if num_envs == 1 else SerialEnv(num_envs, lambda: GymEnv(task))
    transforms = [DoubleToFloat(in_keys=["observation"])]
    if settings["ppo"]["normalize_observations"]:
        transforms.append(VecNormV2(in_keys=["observation"], decay=0.99999, eps=1e-2))
        transforms.append(ClipTransform(in_keys=["observation"], low=-10, high=10))
    env = TransformedEnv(env, Compose(*transforms, RewardSum(), StepCounter()))
    env.set_seed(settings["seed"])
    return env


def _make_networks(env: Any, ppo: Settings) -> tuple[Any, Any]:
    """The example's actor, a tanh-squashed Gaussian with its own scale, and critic."""
    import torch
    from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
    from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator

    num_obs = env.observation_spec["observation"].shape[-1]
    space = env.action_spec_unbatched.space
    num_actions = len(space.low)
    shape = {
        "activation_class": getattr(torch.nn, ACTIVATIONS[ppo["activation"]]),
        "num_cells": ppo["hidden_sizes"],
    }
    mean = MLP(in_features=num_obs, out_features=num_actions, **shape)
    scale = AddStateIndependentNormalScale(num_actions, scale_lb=1e-8, scale_mapping="exp")
    torch.nn.init.constant_(scale.state_independent_scale, ppo["init_log_std"])
    actor = ProbabilisticActor(
        TensorDictModule(
            torch.nn.Sequential(mean, scale), in_keys=["observation"], out_keys=["loc", "scale"]
        ),
        in_keys=["loc", "scale"],
        spec=env.full_action_spec_unbatched,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": space.low, "high": space.high, "tanh_loc": False},
        return_log_prob=True,
    )
    critic = ValueOperator(MLP(in_features=num_obs, out_features=1, **shape), in_keys=["observation"])
    for network, gain in ((mean, 1.0), (critic, 0.01)):
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.orthogonal_(layer.weight, gain)
                torch.nn.init.zeros_(layer.bias)
    return actor, critic


def make(settings: Settings) -> Loop:
    """The loop that one of the settings functions describes."""
    os.environ.setdefault("RL_WARNINGS", "0")  # its compiled part, which PPO does not use, may not load
    return TorchRLLoop(settings)
