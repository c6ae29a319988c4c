"""The envs of brax, with brax's own physics.

Source: Freeman et al. 2021, "Brax: A Differentiable Physics Engine for Large Scale Rigid Body Simulation".
"""

from __future__ import annotations

import warnings

import torch

from envs_gpu.vec_env import EnvSpec
from envs_gpu.zoo import family
from envs_gpu.zoo._episode_book import ZooEnv
from envs_gpu.zoo._family import Family

MAX_EPISODE_STEPS = 1000  # the default of `brax.envs.create`


@family("brax")
class Brax(Family):
    """`brax/ant` and the others of `brax.envs`, actions in [-1, 1]."""

    modules = ("jax", "brax")
    install = "pip install -e '.[zoo]'"
    on_cuda = True
    uses_jax = True

    def names(self) -> list[str]:
        from brax import envs

        return sorted(envs._envs)

    def make(self, name: str, num_envs: int, device: torch.device, seed: int, first_world: int) -> ZooEnv:
        from brax import envs

        from envs_gpu.actuators import driven_joints
        from envs_gpu.zoo._jax_env import JaxEnv

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that brax is not developed any further
            env = envs.get_environment(name)
        model = getattr(getattr(env, "sys", None), "mj_model", None)
        joints = driven_joints(model) if model is not None else ()
        count = env.action_size
        spec = EnvSpec(
            name=f"brax/{name}",
            num_envs=num_envs,
            obs_dims={},
            action_dim=count,
            action_low=(-1.0,) * count,
            action_high=(1.0,) * count,
            joint_names=joints or tuple(f"action_{index}" for index in range(count)),
            control_hz=1.0 / float(env.dt),
            max_episode_steps=MAX_EPISODE_STEPS,
            device=device,
        )
        return JaxEnv(env, spec, seed, first_world)
