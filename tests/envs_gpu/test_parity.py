"""Every engine against the referee, C MuJoCo, over every task: one control step at a time, and freely.

`envs_gpu.parity` says what is measured and what is allowed. In float64, with the capsule's frame as in
`envs_gpu.physics._capsule_frame`, MJX and C agree within 1e-13 after a control step of Ant from every one of
800 states, so what is left here is float32.
"""

import copy

import mujoco
import pytest
import torch

from envs_gpu import parity
from envs_gpu.parity import Drift, Errors, one_step_drift
from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.physics.mujoco import MujocoPhysics
from envs_gpu.random import WorldRandom
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.base import Episode

CPU = torch.device("cpu")
NUM_STEPS = 40
NUM_WORLDS = {"warp": 16, "newton": 16, "mjx": 4, "mjx-warp": 4}
QUICK = {
    "warp": {"cartpole_balance", "ant", "half_cheetah", "go1_velocity", "hold_pose"},
    "newton": {"cartpole_balance", "half_cheetah"},
    "mjx": {"cartpole_balance"},  # XLA compiles ant for a minute
}
"""Tasks that each engine is tried with in every run; the slow tests and `pi-envs check` try all."""

FREE_FACTOR = 20.0
"""How much further than the control group's median; half_cheetah's was 12 times further at its 11th step."""


def pairs():
    for name in TASKS.names():
        for engine in NUM_WORLDS:
            quick = name in QUICK.get(engine, ())
            yield pytest.param(name, engine, marks=() if quick else pytest.mark.slow, id=f"{name}-{engine}")


def make(name, engine):
    backend, _, impl = engine.partition("-")
    task = TASKS.get(name)()
    if (reason := task.unsupported.get(backend)) and not impl:
        pytest.skip(reason)
    return task, backend, PhysicsOptions(mjx_impl=impl or "jax")


@pytest.mark.parametrize(("name", "engine"), pairs())
def test_one_step_from_states_of_the_referee(name, engine):
    task, backend, options = make(name, engine)
    drift = one_step_drift(task, backend, NUM_WORLDS[engine], NUM_STEPS, options)
    allowed, _ = parity.DEVIATIONS.get((name, engine.replace("mjx-", "")), (1.0, ""))
    assert drift.excess() <= allowed, "\n".join(map(str, drift.quantiles()))


def test_the_referee_is_where_it_is():
    drift = one_step_drift(TASKS.get("ant")(), "mujoco", 4, 10)
    assert drift.engine.qpos.max() == drift.engine.qvel.max() == 0
    assert drift.control_group.qvel.max() > 0


def test_another_robot_is_seen(monkeypatch):
    """An engine that has the friction 1 % off is out of bounds."""

    class Slippery(MujocoPhysics):
        name = "warp"

        def __init__(self, model, *args):
            slippery = copy.copy(model)
            slippery.geom_friction[:, 0] *= 0.99
            super().__init__(slippery, *args)
            self.model = model

    monkeypatch.setitem(BACKENDS._entries, "warp", Slippery)
    assert one_step_drift(TASKS.get("ant")(), "warp", 8, 20).excess() > 1


def test_excess_is_the_worst_quantile():
    control = Errors(torch.full((100,), 1e-5), torch.full((100,), 1e-5))
    ours = Errors(torch.full((100,), 2e-5), torch.cat((torch.zeros(50), torch.full((50,), 9e-5))))
    excess = Drift(ours, control, 2.0, torch.zeros(100, dtype=torch.bool)).excess()
    assert excess == pytest.approx(9e-5 / 2.1e-5, rel=1e-4)


WHEEL = """
<mujoco><worldbody><geom type="box" size="1 1 .1"/><body pos="0 0 .5"><freejoint/>
<geom type="cylinder" size=".1 .02"/></body></worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("convex", "rest", "status", "words"),
    [
        (50, 1e-6, "named", "0.1 in the 50 of 100 states without contacts of convex geoms"),
        (50, 1e-3, "failed", "in the 50 of 100 states without contacts of convex geoms"),
        (90, 1e-3, "named", "too few to judge alone: 10 of 100 states"),
    ],
)
def test_convex_contacts_excuse_the_states_they_are_in(convex, rest, status, words):
    """An error of another kind is seen beside them."""
    control = torch.full((100,), 9e-7)
    error = torch.full((100,), rest)
    error[:convex] = 1e-2
    meets = torch.arange(100) < convex
    drift = Drift(Errors(error, error), Errors(control, control), 10.0, meets)
    task, model = TASKS.get("hold_pose"), mujoco.MjModel.from_xml_string(WHEEL)
    verdict = parity.judge(drift, "hold_pose", task, "warp", model)
    assert verdict.status == status
    assert words in verdict.detail


def test_states_with_convex_contacts_are_those_in_which_c_has_one():
    model = mujoco.MjModel.from_xml_string(WHEEL)
    referee = MujocoPhysics(model, 2, CPU, PhysicsOptions())
    qpos = torch.tensor(model.qpos0).repeat(2, 1)
    qpos[1, 2] = 0.115
    meets = parity._ConvexContacts(referee, 5)(qpos, torch.zeros(2, model.nv), torch.zeros(2, 0))
    assert meets.tolist() == [False, True]


@pytest.mark.parametrize(
    "name", [pytest.param("ant", marks=pytest.mark.slow), "half_cheetah", "go1_velocity"]
)
def test_a_hundred_steps_no_further_than_rounding_takes_the_referee(name):
    """Bodies in contact are chaotic: the control group is the referee, off by a float32 bit at every step.

    Of the worlds the median: how far the few that fell apart early are depends on luck.
    """
    task, _, options = make(name, "warp")
    model = task.scene().compile()
    task.attach(model, CPU)
    num_worlds, everyone = 64, torch.ones(64, dtype=torch.bool)
    referee, control = (MujocoPhysics(model, num_worlds, CPU, options) for _ in range(2))
    warp = BACKENDS.get("warp")(model, num_worlds, CPU, options)
    start = task.initial_state(Episode.first(WorldRandom(0, num_worlds, CPU)))
    start = [value.float().double() for value in start]
    for physics in (referee, control, warp):
        physics.set_state(everyone, *start)
    actions, noise = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    low, high = task.action_low, task.action_high
    for step in range(100):
        action = low + (high - low) * torch.rand(num_worlds, len(low), generator=actions)
        for view in (control.state.qpos, control.state.qvel):
            view *= 1 + 2.0**-23 * (2 * torch.rand(view.shape, generator=noise, dtype=torch.float64) - 1)
        for physics in (referee, control, warp):
            physics.step(task.control(action), task.substeps)
        ours, theirs = (
            (physics.state.qpos.double() - referee.state.qpos).abs().amax(-1) for physics in (warp, control)
        )
        allowed = parity.FLOOR + FREE_FACTOR * theirs.median()
        assert ours.median() <= allowed, f"step {step + 1}"
