"""Recorded steps: our own layout of a dataset folder, recording, and the layouts of other libraries."""
