"""Collection with a policy that has a memory: its state goes from step to step beside the worlds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from envs_gpu.compiled import compiled as compile_function
from envs_gpu.vec_env import VecEnv
from pi_incubator.networks._actor_critic import Act
from pi_incubator.networks._stateful import StatefulActorCritic, restarted
from pi_incubator.trainers.rollout import Rollout

StatefulAct = Callable[[dict[str, Tensor], Tensor, Tensor], Act]


@torch.no_grad()
def collect_stateful(env: VecEnv, policy: StatefulActorCritic, act: StatefulAct, rollout: Rollout) -> None:
    """Fill `rollout` with T steps of every world, from where the env and `rollout.state` stand.

    An episode that the clock cut off is bootstrapped with what the critic remembers of it, before the state
    of its world is zeroed for the next one.
    """
    rollout.noise.normal_()
    rollout.first_state.copy_(rollout.state)
    state = rollout.state
    for t in range(rollout.horizon):
        decision = act(dict(env.obs.items()), rollout.noise[t], state)
        assert decision.state is not None
        rollout.store_act(t, decision)
        result = env.step(decision.action)
        rollout.store_result(t, result, partial(policy.value, state=decision.state))
        state = restarted(decision.state, result.terminated | result.truncated)
    rollout.state.copy_(state)
    rollout.close(policy.value(env.obs, state))


def make_stateful_act(policy: StatefulActorCritic, compiled: bool) -> StatefulAct:
    """The function that acts and lets the normalizer see, in one piece."""

    def act(obs: dict[str, Tensor], noise: Tensor, state: Tensor) -> Act:
        policy.gather(obs)
        return policy.act(obs, noise, state)

    return compile_function(act) if compiled else act
