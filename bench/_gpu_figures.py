"""What is to be measured on a GPU, and where a result has it: a report shows the others as not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from bench._result import Metric, Result, dig
from pi_incubator.evaluation.table import show

LOCOMOTION = ("ant", "humanoid", "go1_velocity", "g1_velocity")
BATCHES = (4096, 8192)
TRAINED = {"go1_velocity": 8192, "cartpole_balance": 8192}  # task -> worlds
TOTAL_STEPS = 100_000_000
"""More than a batch of the most worlds."""
GAE_SHAPES = ("128x8192", "128x16384", "24x4096")
GAE_AIMS = {
    "128x8192": "9 us or less",
    "128x16384": "1.25 times its traffic or less",
    "24x4096": "3 us or less",
}


class Figure(NamedTuple):
    """A figure that a GPU machine is asked for."""

    what: str
    aim: str
    command: str
    """That measures it."""
    find: Callable[[Result], str | None]
    """Its value in a result; None where it is not there."""


def figures() -> Iterator[Figure]:
    """All of them, in the order of the report."""
    for num_envs in BATCHES:
        tasks = " ".join(LOCOMOTION)
        command = (
            f"pi-bench sim --task {tasks} --backend warp --num-envs {num_envs} {_json(f'sim_{num_envs}')}"
        )
        for task in LOCOMOTION:
            what = f"{task}: env step over bare physics, {num_envs:,} worlds"
            yield Figure(what, "85 % or more", command, _physics_share(task, num_envs))
    for task, num_envs in TRAINED.items():
        config = f"configs/ppo/{task}.yaml"
        settings = f"env.num_envs={num_envs} env.backend=warp training.total_steps={TOTAL_STEPS}"
        command = f"pi-bench train --config {config} --peer none {settings} {_json(f'train_{task}')}"
        aim = {"go1_velocity": "600,000 env steps/s", "cartpole_balance": "5,000,000 env steps/s"}[task]
        what = f"{task}: PPO, simulation and learning, {num_envs:,} worlds"
        yield Figure(what, f"{aim} or more", command, _training_speed(task, num_envs))
    command = f"pi-bench kernels --kernel gae --shape {' '.join(GAE_SHAPES)} --device cuda {_json('kernels')}"
    for shape in GAE_SHAPES:
        what = f"gae with normalization, T x N = {shape}"
        yield Figure(what, GAE_AIMS.get(shape, ""), command, _kernel(f"gae {shape}"))
    config = "configs/ppo/cartpole_balance.yaml"
    command = f"pi-bench memory --config {config} --iterations 10000 {_json('memory')} env.backend=warp"
    yield Figure("growth of device memory while training", "none", command, _growth)


def _json(name: str) -> str:
    return f"--json bench/results/cuda_{name}.json"


def found(figure: Figure, results: Iterable[Result]) -> str | None:
    """The value of the newest result that has it."""
    newest_first = sorted(results, key=lambda result: result["measured_at"], reverse=True)
    return next((value for result in newest_first if (value := figure.find(result)) is not None), None)


def _physics_share(task: str, num_envs: int) -> Callable[[Result], str | None]:
    def find(result: Result) -> str | None:
        device, worlds = (dig(result, "settings", key, "warp") for key in ("devices", "num_envs"))
        metric = result["metrics"].get(f"{task} on warp: not physics")
        is_it = result["bench"] == "sim" and device == "cuda" and worlds == num_envs
        return f"{100.0 - metric['median']:.1f} %" if is_it and metric else None

    return find


def _training_speed(task: str, num_envs: int) -> Callable[[Result], str | None]:
    def find(result: Result) -> str | None:
        for name, config in result["settings"].items() if result["bench"] == "train" else ():
            reasons = dig(result, "comparisons", name, "facts", "pi_incubator", "compute")
            on_cuda = isinstance(reasons, list) and any(str(r).startswith("device cuda") for r in reasons)
            asked = (dig(config, "env.name"), dig(config, "env.num_envs"))
            metric = result["metrics"].get(f"{name}: pi_incubator")
            if metric and on_cuda and asked == (task, num_envs):
                return _with_unit(metric)
        return None

    return find


def _kernel(name: str) -> Callable[[Result], str | None]:
    def find(result: Result) -> str | None:
        metric = result["metrics"].get(f"{name}: pi_incubator")
        is_it = result["bench"] == "kernels" and dig(result, "settings", "device") == "cuda"
        return _with_unit(metric) if metric and is_it else None

    return find


def _growth(result: Result) -> str | None:
    metric = result["metrics"].get("device memory: growth")
    return _with_unit(metric) if metric and result["bench"] == "memory" else None


def _with_unit(metric: Metric) -> str:
    return f"{show(metric['median'])} {metric['unit']}"
