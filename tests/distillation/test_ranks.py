"""Distillation on several ranks."""

import pytest

from tests.distributed.test_ranks import weights_after

STUDENT = """
env: {name: cartpole_balance, num_envs: 4}
network: {hidden_sizes: [4]}
algorithm: {name: distillation, horizon: 16, num_updates: 4, minibatch_size: 32, buffer_size: 1024}
training: {total_steps: 100000}
compute: {device: cpu, compile: "off"}
"""


@pytest.mark.slow
def test_two_ranks_teach_one_student(balance, tmp_path):
    """Both ranks hold the same weights (the worker compares them), and the student's error is finite."""
    student = weights_after(tmp_path, STUDENT, 2, f"algorithm.teachers=['{balance}']", dtype="float32")
    assert 0.0 < student["metrics.loss/distillation"] < 1e3
