"""MuJoCo Playground's DeepMind Control Suite (Zakka et al. 2025, "MuJoCo Playground"), on MJX."""

from __future__ import annotations

import torch

from envs_gpu.vec_env import EnvSpec
from envs_gpu.zoo import family
from envs_gpu.zoo._episode_book import ZooEnv
from envs_gpu.zoo._family import Family


@family("playground")
class Playground(Family):
    """`playground/CartpoleBalance` and the others of its control suite, actions in [-1, 1].

    They run on MJX's JAX implementation: Warp's, which is their default, shares one buffer of contacts among
    all worlds, so that a world's contacts could depend on its neighbours.
    """

    modules = ("jax", "mujoco_playground")
    install = "pip install -e '.[zoo]'"
    on_cuda = True
    uses_jax = True

    def names(self) -> list[str]:
        from mujoco_playground import dm_control_suite

        return sorted(dm_control_suite.ALL_ENVS)

    def make(self, name: str, num_envs: int, device: torch.device, seed: int, first_world: int) -> ZooEnv:
        import envs_gpu.physics._quiet_warp  # noqa: F401 - before anything that imports Warp

        # isort: split
        from mujoco_playground import dm_control_suite

        from envs_gpu.actuators import driven_joints
        from envs_gpu.zoo._jax_env import JaxEnv

        config = dm_control_suite.get_default_config(name)
        env = dm_control_suite.load(name, config_overrides={"impl": "jax"})
        count = env.action_size
        spec = EnvSpec(
            name=f"playground/{name}",
            num_envs=num_envs,
            obs_dims={},
            action_dim=count,
            action_low=(-1.0,) * count,
            action_high=(1.0,) * count,
            joint_names=driven_joints(env.mj_model),
            control_hz=1.0 / env.dt,
            max_episode_steps=int(config.episode_length),
            device=device,
        )
        return JaxEnv(env, spec, seed, first_world)
