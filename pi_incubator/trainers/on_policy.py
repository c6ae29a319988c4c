"""The on-policy loop: collect, advantage, update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs_gpu.draw import RandomizationError
from envs_gpu.make import make_env
from envs_gpu.physics.base import PhysicsOptions, UnsupportedModelError
from envs_gpu.vec_env import VecEnv
from envs_gpu.zoo import ZooError
from pi_incubator import checkpoint
from pi_incubator.algorithms import make_algorithm
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.networks import make_network
from pi_incubator.networks._actor_critic import Act, ActorCritic
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking import Tracker
from pi_incubator.trainers.randomization import describe
from pi_incubator.trainers.rollout import Rollout

ActFunction = Callable[[dict[str, Tensor], Tensor], Act]


def train(
    cfg: ExperimentConfig, folder: RunFolder, plan: ComputePlan, tracker: Tracker
) -> tuple[VecEnv, ActorCritic]:
    """Train to the last iteration, continuing from the newest checkpoint in `folder` where there is one."""
    torch.manual_seed(cfg.experiment.seed)
    env = make_training_env(cfg, plan)
    policy = make_network(cfg.network, env.spec)
    learner = make_algorithm(cfg, policy, plan.compiled)
    rollout = Rollout(cfg.algorithm.horizon, env.spec, policy.groups)
    act = make_act(policy, plan.compiled)
    parts: dict[str, checkpoint.HasState] = {"env": env, "policy": policy, "learner": learner}
    for iteration in range(checkpoint.restore(folder, parts), cfg.num_iterations):
        with tracker.span("collect"):
            collect(env, policy, act, rollout)
        with tracker.span("advantage"):
            learner.advantage(rollout.data)
        with tracker.span("update"):
            metrics = learner.update(rollout.data)
        env_steps = (iteration + 1) * cfg.batch_size
        last = iteration + 1 == cfg.num_iterations
        if last or due(iteration, cfg.training.log_every):
            # The only host sync of the loop.
            tracker.log(iteration, env_steps, to_numbers(metrics) | env.pop_metrics())
        if last or due(iteration, cfg.checkpoint.save_every):
            checkpoint.save(folder, iteration, env_steps, parts, cfg, cfg.checkpoint.keep)
    return env, policy


@torch.no_grad()
def collect(env: VecEnv, policy: ActorCritic, act: ActFunction, rollout: Rollout) -> None:
    """Fill `rollout` with T steps of every world, from where the env stands."""
    rollout.noise.normal_()
    for t in range(rollout.horizon):
        decision = act(dict(env.obs.items()), rollout.noise[t])
        rollout.store_act(t, decision)
        rollout.store_result(t, env.step(decision.action), policy.value)
    rollout.close(policy.value(env.obs))


def make_training_env(cfg: ExperimentConfig, plan: ComputePlan) -> VecEnv:
    """The env of a run.

    Raises:
        ConfigError: a policy here cannot handle the env, or the backend not the task, or the task's model
            cannot be randomized so.
    """
    try:
        return make_env(
            cfg.env.name,
            backend=cfg.env.backend,
            num_envs=cfg.env.num_envs,
            device=plan.device,
            seed=cfg.experiment.seed,
            options=PhysicsOptions(num_threads=plan.physics_threads, mjx_impl=cfg.env.mjx_impl),
            compiled=plan.compiled,
            randomization=describe(cfg.randomization),
            observation_history=cfg.env.observation_history,
        )
    except RandomizationError as error:
        field, problem = error.field, error.problem
        raise ConfigError("config", field, error.value, problem=problem, fix=error.fix) from None
    except ZooError as error:
        name, problem = cfg.env.name, error.problem
        raise ConfigError("config", "env.name", name, problem=problem, fix=error.fix) from None
    except UnsupportedModelError as error:
        backend, fix = cfg.env.backend, "set it to another backend"
        raise ConfigError("config", "env.backend", backend, problem=str(error), fix=fix) from None


def make_act(policy: ActorCritic, compiled: bool) -> ActFunction:
    """The function that acts and lets the normalizer see, in one piece."""

    def act(obs: dict[str, Tensor], noise: Tensor) -> Act:
        policy.gather(obs)
        return policy.act(obs, noise)

    return torch.compile(act, dynamic=False) if compiled else act


def due(iteration: int, every: int) -> bool:
    """Whether something that happens `every` iterations happens after this one."""
    return (iteration + 1) % every == 0


def to_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """0-dim tensors -> floats, in one transfer."""
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
