"""Robots, their physics and their tasks, as batches of torch tensors on one device.

The only package that imports jax, warp, mujoco and newton. Importing it is cheap: the simulators are
imported by the backend that needs them, after the settings below, which they read once at their import.
"""

import os

# OpenMP's idle threads would otherwise spin on the cores that step the physics.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# XLA's CPU client can deadlock with fewer than four threads in its pool.
if (os.cpu_count() or 1) < 4:
    os.environ.setdefault("NPROC", "4")
# JAX would otherwise take most of the GPU's memory from torch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
