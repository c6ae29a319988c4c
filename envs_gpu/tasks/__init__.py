"""Tasks: what is observed, rewarded, terminated and reset. One file each, imported on first use."""

from envs_gpu.registry import Registry

TASKS = Registry("task", "envs_gpu.tasks", exclude=("base",))
task = TASKS.register
