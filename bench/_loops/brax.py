"""Brax's PPO on brax's env of the same name: another physics model, so its steps are not our steps.

Source: Freeman et al. 2021, "Brax: A Differentiable Physics Engine for Large Scale Rigid Body Simulation".
"""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

from bench._loops import Loop
from bench._loops._peer import Peer, Settings

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig

TASKS = {
    "ant": "ant",
    "half_cheetah": "halfcheetah",
    "hopper": "hopper",
    "humanoid": "humanoid",
    "walker2d": "walker2d",
}
EPISODE_STEPS = 1000
MAX_ITERATIONS = 10**6  # training pauses after each and is ended with the process
# Brax's defaults, written out because the size of an iteration follows from them.
BATCH = {"batch_size": 32, "num_minibatches": 16, "unroll_length": 10, "num_updates_per_batch": 2}


def sized_settings(cfg: ExperimentConfig, num_envs: int) -> Settings:
    """What `make` reads for brax's defaults with `num_envs` worlds (a divisor of 512)."""
    return {"task": TASKS[cfg.env.name], "num_envs": num_envs, "seed": cfg.experiment.seed}


def describe(facts: dict[str, Any]) -> str:
    """What the loop with these `facts` is, in a line."""
    physics = f"another physics model: brax's own, backend {facts['backend']}"
    envs = f"{facts['num_envs']} worlds, {facts['env_steps']} steps an iteration"
    learning = f"{facts['num_updates_per_batch']} epochs, minibatches of {facts['minibatch_samples']}"
    return f"PPO {facts['version']} ({physics}): {envs}, {learning}, NPROC={facts['nproc']}"


PEER = Peer(
    modules=("brax", "jax"),
    describe=describe,
    default=None,  # one world in JAX is nobody's use of it
    sized=sized_settings,
    sizes=(64, 256),
    tasks=TASKS,
    family="brax",
    same_physics=False,
    install="pip install -e '.[zoo]'",
)


class BraxLoop(Loop):
    """Brax's `train` in a thread that waits in its progress callback while it is not this loop's turn."""

    def __init__(self, settings: Settings) -> None:
        _prepare_jax()
        import brax
        import jax
        from brax import envs

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that brax is not developed any further
            self.env = envs.get_environment(settings["task"])
        self.settings = settings
        samples = BATCH["batch_size"] * BATCH["unroll_length"]
        self.env_steps = samples * BATCH["num_minibatches"]
        self.turn, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()
        self._await()  # it reports once before its first iteration
        self.facts = {
            "version": brax.__version__,
            "jax": jax.__version__,
            "backend": self.env.backend,
            "num_envs": settings["num_envs"],
            "env_steps": self.env_steps,
            "minibatch_samples": samples,
            "num_updates_per_batch": BATCH["num_updates_per_batch"],
            "nproc": os.environ.get("NPROC", "all"),
        }

    def iterate(self) -> int:
        self.turn.release()
        self._await()
        return self.env_steps

    def warm_up(self) -> None:
        for _ in range(3):  # the state that comes back from the first iteration compiles it once more
            self.iterate()

    def _train(self) -> None:
        from brax.training.agents.ppo import train as ppo

        try:
            ppo.train(
                self.env,
                num_timesteps=self.env_steps * MAX_ITERATIONS,
                num_evals=MAX_ITERATIONS + 1,
                run_evals=False,
                num_envs=self.settings["num_envs"],
                episode_length=EPISODE_STEPS,
                seed=self.settings["seed"],
                policy_params_fn=lambda *_: self._pause(),
                **BATCH,
            )
        except BaseException as error:  # the main thread raises it
            self.error = error
            self.done.release()

    def _pause(self) -> None:
        self.done.release()
        self.turn.acquire()

    def _await(self) -> None:
        self.done.acquire()
        if self.error is not None:
            raise self.error


def _prepare_jax() -> None:
    """What brax 0.14 needs to run: threads that XLA does not deadlock on, a function that JAX removed."""
    if (os.cpu_count() or 1) < 4:
        os.environ.setdefault("NPROC", "4")  # XLA's CPU client hangs on two
    import jax

    if not hasattr(jax, "device_put_replicated"):
        setattr(jax, "device_put_replicated", _replicate)  # noqa: B010 (its type is another)


def _replicate(tree: Any, devices: list[Any]) -> Any:
    import jax

    return jax.tree.map(lambda leaf: jax.numpy.stack([leaf] * len(devices)), tree)


def make(settings: Settings) -> Loop:
    """The loop that `sized_settings` describes."""
    return BraxLoop(settings)
