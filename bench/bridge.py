"""What the way from torch to JAX and back adds to a step of MJX, beside the jitted step and a peer's way.

Every turn is one control step of the same worlds: through the backend, as the bare jitted function on JAX's
own arrays, and with every array cloned on its way, as TorchRL's wrapper of JAX envs does it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from bench._output import add_output_arguments, write_outputs
from bench._result import Metric, make_metric, make_result
from pi_incubator.cli._parser import count
from pi_incubator.config import ExperimentConfig, check_names
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table

if TYPE_CHECKING:
    from envs_gpu.physics.mjx import MjxPhysics

OURS, PEER = "pi_incubator", "dlpack and clone, as TorchRL"
WARM_UP_STEPS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--task", default="inverted_pendulum", help="task to step (default: %(default)s)")
    parser.add_argument("--num-envs", type=count, default=4, help="worlds (default: 4)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rounds", type=count, default=5, help="rounds (default: 5)")
    parser.add_argument("--steps", type=count, default=500, help="steps of a round (default: 500)")
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the table and write the result.

    Raises:
        UserError: no such task, or MJX cannot run it here.
    """
    physics = _physics(arguments)
    pointers = shared_pointers(physics)
    rounds = measure(physics, arguments.rounds, arguments.steps)
    settings = {"task": arguments.task, "num_envs": arguments.num_envs, "device": physics.device.type}
    metrics = {
        f"crossing: {name}": make_metric(values, "us/step", "lower" if name == OURS else "")
        for name, values in rounds.items()
    }
    result = make_result("bridge", settings, metrics, shared_pointers=pointers)
    title = f"microseconds of a step beside the jitted one, {arguments.num_envs} worlds of {arguments.task}"
    print_table({name: _row(metric) for name, metric in metrics.items()}, title=title, first_column="way")
    print("same address on both sides: " + ", ".join(f"{name} {same}" for name, same in pointers.items()))
    write_outputs(result, arguments)


def shared_pointers(physics: MjxPhysics) -> dict[str, bool]:
    """Whether what crosses in a step has one address in torch and in JAX, by direction."""
    import torch

    from envs_gpu import bridge

    controls = bridge.aligned_empty((physics.num_worlds, physics.model.nu), torch.float32, physics.device)
    given = physics._given(controls.zero_())
    source = physics._controls if physics.device.type == "cpu" else controls
    physics.step(controls, 1)
    return {
        "torch -> JAX": given.unsafe_buffer_pointer() == source.data_ptr(),
        "JAX -> torch": physics._shown.unsafe_buffer_pointer() == physics.state.qpos.data_ptr(),
    }


def measure(physics: MjxPhysics, num_rounds: int, num_steps: int) -> dict[str, list[float]]:
    """What each way adds to the jitted step, microseconds; one median of paired differences a round."""
    ways = _ways(physics)
    for _ in range(WARM_UP_STEPS):
        for step in ways.values():
            step()
    rounds: dict[str, list[float]] = {OURS: [], PEER: []}
    for _ in range(num_rounds):
        taken_s: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(num_steps):
            for name, step in ways.items():
                taken_s[name].append(_timed(step))
        for name, values in rounds.items():
            pairs = zip(taken_s[name], taken_s["bare"], strict=True)
            values.append(1e6 * median(ours - bare for ours, bare in pairs))
    return rounds


def _ways(physics: MjxPhysics) -> dict[str, Callable[[], Any]]:
    """A control step, by the way its arrays go; each ends when its results can be read."""
    import jax
    import jax.numpy as jnp
    import torch

    from envs_gpu.physics.base import PhysicsState

    controls = torch.zeros(physics.num_worlds, physics.model.nu, device=physics.device)
    substeps = jax.device_put(jnp.int32(1), physics._nobody.sharding)

    def jitted(carry: Any) -> Any:
        state = (physics._nobody, carry.qpos, carry.qvel)
        return jax.block_until_ready(
            physics._program(physics._constants, physics._varied, carry, *state, substeps)
        )

    def cloned() -> list[torch.Tensor]:
        flat = controls.contiguous().detach().flatten().clone()
        given = jax.dlpack.from_dlpack(flat).reshape(controls.shape)
        carry, _ = jitted(physics._carry._replace(ctrl=given))
        arrays = [getattr(carry, name) for name in PhysicsState._fields]
        return [torch.utils.dlpack.from_dlpack(array.__dlpack__()).clone() for array in arrays]

    return {OURS: lambda: physics.step(controls, 1), "bare": lambda: jitted(physics._carry), PEER: cloned}


def _timed(step: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    step()
    return time.perf_counter() - began_s


def _physics(arguments: argparse.Namespace) -> MjxPhysics:
    """The worlds to be stepped."""
    sections = {
        "env": {"name": arguments.task, "backend": "mjx", "num_envs": arguments.num_envs},
        "compute": {"device": arguments.device},
    }
    cfg = ExperimentConfig.model_validate(sections | _whole_batches(arguments.num_envs))
    check_names(cfg, {"env.name": "--task", "compute.device": "--device", "env.backend": "pi-bench bridge"})
    from pi_incubator.compute import plan_compute
    from pi_incubator.envs import make_training_env

    env = make_training_env(cfg, plan_compute(cfg))
    physics: MjxPhysics | None = getattr(env, "physics", None)
    if physics is None:
        raise UserError(f"--task {arguments.task}: brings its own physics; name one of our own tasks")
    return physics


def _whole_batches(num_envs: int) -> dict[str, Any]:
    """Sections that go with any number of worlds: nothing is learned."""
    return {"algorithm": {"horizon": 1, "minibatch_size": num_envs}}


def _row(metric: Metric) -> dict[str, float]:
    return {"us/step": metric["median"], "min": metric["min"], "max": metric["max"]}
