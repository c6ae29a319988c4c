"""Reinforcement learning for robots, from simulator to robot."""

__version__ = "0.1.0"
