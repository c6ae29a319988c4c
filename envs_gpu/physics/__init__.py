"""Simulators, one file each, behind the interface of `base.Physics`."""

from envs_gpu.registry import Registry

BACKENDS = Registry("backend", "envs_gpu.physics", exclude=("base", "honours"))
backend = BACKENDS.register
