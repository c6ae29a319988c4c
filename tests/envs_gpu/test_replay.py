"""Dumps of broken worlds, replayed in C MuJoCo against loops of our own over `mj_step` and over Warp."""

import json

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.draw import Draw
from envs_gpu.dump import read_dump
from envs_gpu.errors import DumpError
from envs_gpu.guards import GuardOptions
from envs_gpu.make import make_env
from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.randomize import Randomization
from envs_gpu.replay import replay, report
from envs_gpu.sim_env import SimEnv
from envs_gpu.tasks.base import Outcome, Task

CPU = torch.device("cpu")
HISTORY = 5


def make(tmp_path, task="ant", backend="mujoco", energy_margin=None):
    """Without limits of the robot, so that the physics itself breaks."""
    guards = GuardOptions(history_steps=HISTORY, dump_dir=tmp_path / "broken", energy_margin=energy_margin)
    return make_env(task, backend=backend, num_envs=3, device=CPU, seed=1, guards=guards)


def play(env, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        env.step(2 * torch.rand(env.num_envs, env.spec.action_dim, generator=generator) - 1)


def blow_up(env, world, speed, dof=8):
    """Set one velocity by hand, and step until the world is gone."""
    env.physics.state.qvel[world, dof] = speed
    for _ in range(20):
        if env.step(torch.zeros(env.num_envs, env.spec.action_dim)).broken[world]:
            return
    raise AssertionError("the world does not break")


def only_dump(tmp_path):
    (path,) = (tmp_path / "broken").glob("*.npz")
    return path


def first_bad_substep(model, before, substeps):
    """The substep after which C's state is beyond what C itself accepts, by a loop of this test."""
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = before["qpos"], before["qvel"], before["ctrl"]
    for substep in range(1, substeps + 1):
        mujoco.mj_step(model, data)
        state = np.concatenate((data.qpos, data.qvel))
        if np.isnan(state).any() or np.abs(state).max() > 1e10:
            return substep
    return None


class Rocket(Task):
    """A mass of 1 kg on a rail, whose motor adds 4e9 m/s in a substep: the third leads beyond 1e10 m/s."""

    substeps, max_episode_steps = 5, 100

    def __init__(self, kick=4e11):
        self.kick = kick

    def scene(self):
        spec = mujoco.MjSpec()
        spec.option.timestep = 0.01
        sled = spec.worldbody.add_body(name="sled")
        sled.add_joint(name="rail", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(1, 0, 0))
        sled.add_geom(name="sled", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.1, 0, 0), mass=1)
        motor = spec.add_actuator(
            name="rail", trntype=mujoco.mjtTrn.mjTRN_JOINT, target="rail", ctrlrange=(-1, 1)
        )
        motor.gear[0] = self.kick
        return spec

    def initial_state(self, episode):
        nothing = torch.zeros(len(episode.step), 1)
        return nothing, nothing

    def outcome(self, state, episode, action):
        speed = state.qvel[:, 0]
        return Outcome({"speed": speed}, torch.zeros_like(speed, dtype=torch.bool), {})

    def observe(self, state, episode):
        return {"policy": state.qvel}


def push(env):
    """World 1 uses its motor."""
    action = torch.zeros(env.num_envs, 1)
    action[1] = 1.0
    return env.step(action)


def spin(env):
    """World 1 spins so fast that the equations have no answer."""
    env.physics.state.qvel[1, 4] = 1e9
    return env.step(torch.zeros(env.num_envs, 8))


def make_rocket(tmp_path, backend, kick=4e11):
    guards = GuardOptions(history_steps=HISTORY, dump_dir=tmp_path / "broken", energy_margin=None)
    return SimEnv(
        "rocket",
        Rocket(kick),
        lambda model: BACKENDS.get(backend)(model, 3, CPU, PhysicsOptions()),
        CPU,
        seed=1,
        guards=guards,
    )


def test_a_replay_knows_what_the_robot_can_reach(tmp_path):
    """A joint at 1e6 rad/s is finite, and no ant's: the dump says where it was first."""
    env = make(tmp_path, energy_margin=10.0)
    play(env, 3)
    env.physics.state.qvel[1, 8] = 1e6
    assert env.step(torch.zeros(3, 8)).broken.tolist() == [False, True, False]
    env.pop_metrics()
    assert (
        "what was impossible came first in the state, before control step 0"
        in replay(only_dump(tmp_path)).verdict
    )


@pytest.mark.parametrize(("maker", "disturb", "expected"), [(make, spin, 1), (make_rocket, push, 3)])
@pytest.mark.parametrize("backend", ["mujoco", "warp"])
def test_c_breaks_in_the_same_substep(tmp_path, backend, maker, disturb, expected):
    env = maker(tmp_path, backend=backend)
    calm = torch.zeros(3, env.spec.action_dim)
    for _ in range(3):
        env.step(calm)
    assert disturb(env).broken.tolist() == [False, True, False]
    env.pop_metrics()
    dump, _ = read_dump(only_dump(tmp_path))
    replayed = replay(only_dump(tmp_path))
    last = {name: value[-1] for name, value in dump.before.items()}
    assert first_bad_substep(env.task.scene().compile(), last, env.task.substeps) == expected
    assert engines_bad_substep(env, last) == expected
    assert (replayed.broken.age, replayed.broken.substep) == (0, expected)
    assert "breaks in C MuJoCo too" in replayed.verdict
    assert dump.world == 1
    undisturbed = [moment.difference for moment in replayed.moments[:2]]
    assert len(replayed.moments) == 4
    assert max(undisturbed) <= (0 if backend == "mujoco" else 1e-4)


def engines_bad_substep(env, before):
    """As `first_bad_substep`, by the env's own physics."""
    everyone = torch.ones(3, dtype=torch.bool)
    qpos, qvel, ctrl = (torch.tensor(before[name]).repeat(3, 1) for name in ("qpos", "qvel", "ctrl"))
    env.physics.set_state(everyone, qpos, qvel)
    for substep in range(1, env.task.substeps + 1):
        env.physics.step(ctrl, 1)
        state = torch.cat((env.physics.state.qpos[0], env.physics.state.qvel[0]))
        if not (state.abs() < 1e10).all():
            return substep
    return None


@pytest.mark.parametrize("task", ["ant", "half_cheetah", "go1_velocity"])
def test_the_record_is_what_c_does_bit_for_bit(tmp_path, task):
    """Though the scene travels as text with six digits: what it rounds is in the dump as well."""
    env = make(tmp_path, task)
    play(env, 12)
    action = torch.zeros(3, env.spec.action_dim)
    action[2, 0] = torch.nan
    env.step(action)
    env.pop_metrics()
    replayed = replay(only_dump(tmp_path))
    assert [moment.difference for moment in replayed.moments[:-1]] == [0.0] * (HISTORY - 1)
    assert replayed.moments[-1].given == "controls"
    assert "the policy, not the physics" in replayed.verdict


def test_history_ends_at_the_reset(tmp_path):
    """A world that broke in its third step has three states to show; they start at time zero."""
    env = make(tmp_path)
    play(env, 9)
    env.restart(torch.tensor([False, True, False]))
    play(env, 2, seed=3)
    blow_up(env, 1, 3e9)
    env.pop_metrics()
    dump, _ = read_dump(only_dump(tmp_path))
    np.testing.assert_allclose(dump.before["time"], [0, 0.05, 0.1], atol=1e-9)


def test_a_state_that_was_bad_before_is_told_apart(tmp_path):
    env = make(tmp_path)
    play(env, 3)
    env.physics.state.qpos[0, 9] = torch.nan
    env.step(torch.zeros(3, 8))
    env.pop_metrics()
    replayed = replay(only_dump(tmp_path))
    assert replayed.moments[-1].given == "state"
    assert "what was impossible came first in the state, before control step 0" in replayed.verdict


def test_what_does_not_break_in_c_says_how_far_it_is(tmp_path):
    env = make(tmp_path)
    outcome = env.task.outcome
    play(env, 6)
    env._compiled_judge = None

    def spoiled(state, episode, action):
        found = outcome(state, episode, action)
        reward = {name: torch.where(torch.arange(3) == 2, torch.nan, x) for name, x in found.reward.items()}
        return found._replace(reward=reward)

    env.task.outcome = spoiled
    env.step(torch.zeros(3, 8))
    env.pop_metrics()
    title, rows, verdict = report(only_dump(tmp_path))
    assert "world 2 broke" in title
    assert "(reward)" in title
    assert list(rows) == ["-4", "-3", "-2", "-1", "0"]
    assert all(row["breaks"] == "no" and row["C - record"] == 0 for row in rows.values())
    assert "does not break in C MuJoCo, where mujoco broke the reward" in verdict


def test_an_acceleration_that_c_warns_of_is_told(tmp_path):
    """Finite to the end in C, as a world may be that broke in another engine."""
    env = make_rocket(tmp_path, "mujoco", kick=2e10)
    assert not push(env).broken.any()
    env._guards.isolate(torch.tensor([0, 2, 0], dtype=torch.uint8), env._episode_step)
    env.pop_metrics()
    replayed = replay(only_dump(tmp_path))
    assert replayed.broken is None
    assert "C MuJoCo warns (bad qacc) in control step 0, substep 1 of 5" in replayed.verdict


def test_a_worlds_own_model_fields_are_replayed(tmp_path):
    env = make(tmp_path)
    friction = torch.tensor(env.physics.model.geom_friction).repeat(3, 1, 1)
    friction[1] *= 0.5
    env.physics.world_fields = lambda: {"geom_friction": friction}
    blow_up(env, 1, 3e9)
    friction.zero_()  # what the world has after its restart is another matter
    env.pop_metrics()
    _, model = read_dump(only_dump(tmp_path))
    np.testing.assert_array_equal(model.geom_friction, env.physics.model.geom_friction * 0.5)


@pytest.mark.parametrize("task", ["ant", "yam_lift"])
def test_a_randomized_world_is_replayed_bit_for_bit(tmp_path, task):
    """Mass, inertia and center of mass, of which the model keeps derived quantities."""
    body = {"ant": "torso", "yam_lift": "link_*"}[task]
    random = Randomization(
        mass=Draw(low=0.8, high=1.2),
        inertia=Draw(low=0.8, high=1.2),
        com=Draw(low=-0.02, high=0.02, names=body),
    )
    guards = GuardOptions(history_steps=6, dump_dir=tmp_path / "broken")
    env = make_env(task, num_envs=3, device=CPU, seed=1, guards=guards, randomization=random)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        env.step(2 * torch.rand(3, env.spec.action_dim, generator=generator) - 1)
    env.step(torch.full((3, env.spec.action_dim), torch.nan))
    env.pop_metrics()
    differences = [moment.difference for moment in replay(only_dump(tmp_path)).moments[:-2]]
    assert len(differences) == 4
    assert max(differences) == 0


def resave(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def with_header(path, **changes):
    with np.load(path) as file:
        header = json.loads(str(file["header"])) | changes
    resave(path, header=np.array(json.dumps(header)))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is damaged"),
        (lambda path: path.write_bytes(b""), "is no dump"),
        (lambda path: path.write_text("hello"), "is no dump"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "is no dump"),
        (lambda path: np.savez(path, x=np.array([{}], dtype=object)), "is no dump"),
        (lambda path: resave(path, **{"before.qvel": None}), "is no dump"),
        (lambda path: resave(path, **{"before.qpos": np.zeros((0, 15))}), "incomplete"),
        (lambda path: resave(path, **{"exact.body_mass": np.zeros(3)}), "is no dump"),
        (lambda path: resave(path, **{"model.nonsense": np.zeros(3)}), "no field 'nonsense'"),
        (lambda path: resave(path, mjcf=np.array("<mujoco><oops/></mujoco>")), "is no dump"),
        (lambda path: with_header(path, format=99), "has format 99, this version reads 1; upgrade"),
        (lambda path: path.unlink(), "file not found"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, damage, message):
    env = make(tmp_path)
    blow_up(env, 0, 3e9)
    env.pop_metrics()
    path = only_dump(tmp_path)
    damage(path)
    with pytest.raises(DumpError, match=message) as caught:
        replay(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_dumps_hold_no_path_of_this_machine(tmp_path):
    env = make(tmp_path, "go1_velocity")
    blow_up(env, 0, 3e9)
    env.pop_metrics()
    with np.load(only_dump(tmp_path), allow_pickle=False) as file:
        text = " ".join(str(file[name]) for name in file.files if file[name].dtype.kind == "U")
    assert "/" not in text.replace("/>", "").replace("</", "")
    assert only_dump(tmp_path).stat().st_size < 50_000


def test_a_dump_holds_the_meshes_of_the_robot(tmp_path):
    robot = tmp_path / "robot"
    robot.mkdir()
    corners = "v 0 0 0\nv .2 0 0\nv 0 .2 0\nv 0 0 .2\n"
    (robot / "wedge.obj").write_text(corners + "f 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    (robot / "robot.xml").write_text(
        '<mujoco><asset><mesh name="wedge" file="wedge.obj"/></asset><worldbody>'
        '<geom type="plane" size="1 1 1"/><body pos="0 0 1"><joint name="turn" axis="0 1 0"/>'
        '<geom type="mesh" mesh="wedge" mass="1"/></body>'
        '</worldbody><actuator><motor joint="turn" ctrlrange="-1 1"/></actuator></mujoco>'
    )
    guards = GuardOptions(history_steps=HISTORY, dump_dir=tmp_path / "broken", energy_margin=None)
    env = make_env(
        "hold_pose", backend="mujoco", num_envs=3, device=CPU, guards=guards, model=str(robot / "robot.xml")
    )
    expected = env.physics.model.mesh_vert.copy()
    blow_up(env, world=1, speed=1e12, dof=0)
    env.check()
    env.close()
    for file in robot.iterdir():
        file.unlink()
    _, model = read_dump(only_dump(tmp_path))
    np.testing.assert_array_equal(model.mesh_vert, expected)
