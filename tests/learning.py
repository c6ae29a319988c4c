"""What tests share that learn: an algorithm on given worlds, and what a run left behind."""

import torch
from safetensors.torch import load_file

from pi_incubator.algorithms import algorithm_class
from pi_incubator.compute import ComputePlan, choose_autocast
from pi_incubator.config.models import NETWORKS
from pi_incubator.distributed import Distributed
from pi_incubator.registry import networks


def make_algorithm(cfg, env, compiled=False):
    """The algorithm of `cfg` on `env`, in one process, on the device of `env`."""
    torch.set_num_threads(1)  # as `plan_compute` does
    plan = ComputePlan(env.device, "mujoco", 1, 1, compiled, choose_autocast(cfg, env.device)[0], ())
    return algorithm_class(cfg)(cfg, env, Distributed(), plan)


def state_of(algorithm):
    """Everything that a checkpoint of `algorithm` holds, as `PART.NAME` -> a copy."""
    parts = {name: part.value.state_dict() for name, part in algorithm.parts().items()}
    return {f"{part}.{key}": value.clone() for part, state in parts.items() for key, value in state.items()}


def last_tensors(folder):
    """The tensors of a run's newest checkpoint, as `PART.NAME`."""
    parts = {file.stem: load_file(file) for file in folder.saved()[-1].glob("*.safetensors")}
    return {f"{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}


def assert_same_tensors(ours, theirs):
    """Both hold the same names, and under each the same bits."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def networks_with_a_state():
    """The names of the networks with a state that all algorithms for sequences train: no world models."""
    members = NETWORKS.members
    return [name for name in networks.names() if members[name].has_state and not members[name].is_world_model]
