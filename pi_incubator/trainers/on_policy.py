"""The on-policy loop: collect, advantage, update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs_gpu.compiled import compiled as compile_function
from envs_gpu.draw import RandomizationError
from envs_gpu.errors import ModelChoiceError
from envs_gpu.guards import GuardOptions
from envs_gpu.make import check_model_choice, make_env
from envs_gpu.physics.base import UnsupportedModelError
from envs_gpu.pixels import PixelError
from envs_gpu.vec_env import VecEnv
from envs_gpu.zoo import ZooError
from pi_incubator import checkpoint
from pi_incubator.algorithms import make_algorithm
from pi_incubator.algorithms._learner import Learner
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.errors import DivergedError
from pi_incubator.evaluation.worlds import physics_options, pixel_options
from pi_incubator.networks import make_network
from pi_incubator.networks._actor_critic import Act, ActorCritic
from pi_incubator.networks._stateful import StatefulActorCritic
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking import Tracker
from pi_incubator.trainers.overlap import OverlappedLearner
from pi_incubator.trainers.randomization import describe
from pi_incubator.trainers.rollout import Rollout
from pi_incubator.trainers.stateful import collect_stateful, make_stateful_act

ActFunction = Callable[..., Act]


def train(
    cfg: ExperimentConfig, folder: RunFolder, plan: ComputePlan, tracker: Tracker
) -> tuple[VecEnv, ActorCritic]:
    """Train to the last iteration, continuing from the newest checkpoint in `folder` where there is one."""
    torch.manual_seed(cfg.experiment.seed)
    env = make_training_env(cfg, plan, folder)
    policy = make_network(cfg.network, env.spec)
    learner = make_algorithm(cfg, policy, plan.compiled)
    learner, actor = overlap(learner, policy) if cfg.training.overlap else (learner, policy)
    rollout = Rollout(cfg.algorithm.horizon, env.spec, policy.groups, policy.state_width)
    act = make_act(actor, plan.compiled)
    parts: dict[str, checkpoint.HasState] = {"env": env, "policy": policy, "learner": learner}
    if policy.state_width:
        parts["rollout"] = rollout
    for iteration in range(checkpoint.restore(folder, parts), cfg.num_iterations):
        with tracker.span("collect"):
            collect(env, actor, act, rollout)
        with tracker.span("advantage"):
            learner.advantage(rollout.data)
        with tracker.span("update"):
            metrics = learner.update(rollout.data)
        env_steps = (iteration + 1) * cfg.batch_size
        last = iteration + 1 == cfg.num_iterations
        logs = last or due(iteration, cfg.training.log_every)
        saves = last or due(iteration, cfg.checkpoint.save_every)
        if logs:
            # The only host sync of the loop.
            tracker.log(iteration, env_steps, to_numbers(metrics) | env.pop_metrics())
        if saves:
            learner.settle()
        if logs or saves:
            env.check()  # raises before anything is saved that such worlds have taught
            check_finite(actor)
        if saves:
            checkpoint.save(folder, iteration, env_steps, parts, cfg, cfg.checkpoint.keep)
    return env, policy


def overlap(learner: Learner, policy: ActorCritic) -> tuple[Learner, ActorCritic]:
    """`learner` going on in the background, and the policy that acts meanwhile."""
    overlapped = OverlappedLearner(learner, policy)
    return overlapped, overlapped.actor


@torch.no_grad()
def collect(env: VecEnv, policy: ActorCritic, act: ActFunction, rollout: Rollout) -> None:
    """Fill `rollout` with T steps of every world, from where the env stands."""
    if isinstance(policy, StatefulActorCritic):
        collect_stateful(env, policy, act, rollout)
        return
    rollout.noise.normal_()
    for t in range(rollout.horizon):
        decision = act(dict(env.obs.items()), rollout.noise[t])
        rollout.store_act(t, decision)
        rollout.store_result(t, env.step(decision.action), policy.value)
    rollout.close(policy.value(env.obs))


def make_training_env(cfg: ExperimentConfig, plan: ComputePlan, folder: RunFolder | None = None) -> VecEnv:
    """The env of a run, which dumps broken worlds into its `folder`, if there is one.

    Raises:
        ConfigError: a policy here cannot handle the env, the backend not the task, nothing can be drawn, or
            the task's model cannot be randomized so.
    """
    try:
        check_model_choice(cfg.env.name, cfg.env.model)
        return make_env(
            cfg.env.name,
            backend=cfg.env.backend,
            num_envs=cfg.env.num_envs,
            device=plan.device,
            seed=cfg.experiment.seed,
            options=physics_options(cfg.env, plan.physics_threads),
            compiled=plan.compiled,
            guards=GuardOptions(
                history_steps=cfg.guards.history_steps,
                max_broken_share=cfg.guards.max_broken_share,
                dump_dir=folder.broken if folder and cfg.guards.max_dumps else None,
                max_dumps=cfg.guards.max_dumps,
            ),
            model=cfg.env.model,
            pixels=pixel_options(cfg),
            episode_length_s=cfg.env.episode_length_s,
            randomization=describe(cfg.randomization),
            observation_history=cfg.env.observation_history,
        )
    except ModelChoiceError as error:
        problem, fix = error.problem, error.fix
        raise ConfigError("config", "env.model", cfg.env.model, problem=problem, fix=fix) from None
    except PixelError as error:
        field, fix = f"env.pixels.{error.key}", error.fix
        raise ConfigError("config", field, error.value, problem=error.problem, fix=fix) from None
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
    if isinstance(policy, StatefulActorCritic):
        return make_stateful_act(policy, compiled)

    def act(obs: dict[str, Tensor], noise: Tensor) -> Act:
        policy.gather(obs)
        return policy.act(obs, noise)

    return compile_function(act) if compiled else act


def check_finite(policy: ActorCritic) -> None:
    """Refuse a policy that no step has been taken with yet, and that could take none.

    Raises:
        DivergedError: a weight is not finite.
    """
    if not torch.stack([weight.isfinite().all() for weight in policy.parameters()]).all():
        raise DivergedError(
            "the last update left weights that are not finite, and no checkpoint was written of them; "
            "lower algorithm.lr or algorithm.max_grad_norm and run again to continue from the one before"
        )


def due(iteration: int, every: int) -> bool:
    """Whether something that happens `every` iterations happens after this one."""
    return (iteration + 1) % every == 0


def to_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """0-dim tensors -> floats, in one transfer."""
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
