"""Where collected data is kept: the rollout of an iteration, and replay buffers."""
