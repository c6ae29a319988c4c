"""Replay buffers: one contract (`replay.py`), one file for each kind."""
