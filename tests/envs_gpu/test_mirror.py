"""A task's mirror is that of its physics: C MuJoCo gives to the mirror image of a state what the mirror says.

Letters: N worlds. Worlds 0 to N - 1 are in some states, worlds N to 2 N - 1 in their mirror images.
"""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.errors import EnvError
from envs_gpu.make import make_env, make_task
from envs_gpu.mirror import AXIAL, POLAR, QUATERNION, Mirror, ModelMirror, joined, paired, signs
from envs_gpu.observation import ObservationTerm
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.physics.mujoco import MujocoPhysics
from envs_gpu.sim_env import SimEnv
from envs_gpu.tasks import TASKS

CPU = torch.device("cpu")
NUM_WORLDS, NUM_STEPS = 8, 8
SYMMETRIC = ["ant", "g1_velocity", "go1_getup", "go1_velocity", "go1_velocity_rough"]
SAME_COMMAND = {"command_interval_s": 1e9}


def symmetrized(spec: mujoco.MjSpec) -> mujoco.MjSpec:
    """The scene with masses that are mirror images to the last digit, as no maker measures them: a body takes
    over the inertia of its partner, and one in the middle keeps none of its sideways part."""
    model = spec.compile()
    index = ModelMirror(model).bodies().index.numpy() + 1
    for body, partner in enumerate(index, 1):
        if partner < body:
            continue
        source = model.body(body)
        ipos, iquat, pos = source.ipos.copy(), source.iquat.copy(), source.pos.copy()
        if partner == body:
            ipos[1], iquat[:], pos[1] = 0.0, (1, 0, 0, 0), 0.0
        for number, side in ((body, 1), (partner, -1)):
            target = spec.body(model.body(number).name)
            target.explicitinertial, target.fullinertia = True, np.full(6, np.nan)
            target.mass, target.inertia = source.mass[0], source.inertia
            target.ipos, target.iquat = ipos * (1, side, 1), iquat * (1, side, 1, side)
            target.pos = pos * (1, side, 1)
            if partner == body:
                break
    return spec


def make_mirrored(name: str, exact: bool) -> SimEnv:
    """2 N worlds whose second half is the mirror image of the first, after steps under random actions."""
    task = make_task(name)
    if exact:
        scene = task.scene
        task.scene = lambda: symmetrized(scene())  # type: ignore[method-assign]
    known = {parameter.name for parameter in task.parameters}
    env = SimEnv(
        name,
        task,
        lambda model: MujocoPhysics(model, 2 * NUM_WORLDS, CPU, PhysicsOptions(num_threads=1)),
        CPU,
        seed=3,
        task_parameters={key: value for key, value in SAME_COMMAND.items() if key in known},
        observation_history=2,
    )
    for action in actions_of(env, 10, seed=1):
        env.step(action)
    qpos, qvel = (env.physics.state.qpos[:NUM_WORLDS].clone(), env.physics.state.qvel[:NUM_WORLDS].clone())
    middle = torch.zeros(NUM_WORLDS, dtype=torch.float64)
    if name == "go1_velocity_rough":
        qpos, middle = on_tiles(env, qpos)
    assert task.mirror is not None
    image = task.mirror.qpos(qpos)
    image[:, 1] = 2 * middle - qpos[:, 1]
    everyone = torch.ones(2 * NUM_WORLDS, dtype=torch.bool)
    env.place(everyone, torch.cat((qpos, image)), torch.cat((qvel, task.mirror.qvel(qvel))))
    state = env.state_dict()
    if "memory.command" in state:
        state["memory.command"][NUM_WORLDS:] = state["memory.command"][:NUM_WORLDS] * torch.tensor(
            (1, -1, -1)
        )
    env.load_state_dict(state)
    return env


def on_tiles(env: SimEnv, qpos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The worlds on slopes and stairs that are their own mirror image about their tiles' middle `[N]`, m.

    In the air, and away from the edges of their pyramids: MuJoCo cuts cells along one diagonal, which is not
    symmetric.
    """
    number = torch.arange(NUM_WORLDS)
    middle = env.task._ground.tile_middle(number % 6, 2 + number % 3).double()
    qpos = qpos.clone()
    qpos[:, :2] = middle + torch.stack((1.5 * (-1.0) ** number, 0.02 * number - 0.05), -1)
    qpos[:, 2] = env.task._ground.height_at(qpos[:, :2]) + 0.7
    return qpos, middle[:, 1]


def actions_of(env: SimEnv, num_steps: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(num_steps, env.num_envs, env.spec.action_dim, generator=draw) * 1.6 - 0.8


def largest_differences(env: SimEnv) -> tuple[float, float]:
    """Between the mirror image of what the first half gives and what the second half does: of observations in
    all steps, and of rewards. Ends must be the same."""
    mirror = env.mirror(("policy", *({"critic"} & env.obs.keys())))
    apart, reward_apart, one_sided = 0.0, 0.0, False
    for number, action in enumerate(actions_of(env, NUM_STEPS, seed=2)):
        action[NUM_WORLDS:] = mirror.action(action[:NUM_WORLDS])
        result = env.step(action)
        for group, reflect in mirror.groups.items() if number else ():  # the first history is from before
            first, second = result.final_obs[group].split(NUM_WORLDS)
            apart = max(apart, float((reflect(first) - second).abs().max()))
            one_sided |= bool((reflect(first) - first).abs().max() > 0.1)
        first, second = result.reward.split(NUM_WORLDS)
        reward_apart = max(reward_apart, float((first - second).abs().max()))
        assert torch.equal(*result.terminated.split(NUM_WORLDS))
        assert not result.broken.any()
        if result.terminated.any():
            break
    assert one_sided  # the states are not their own mirror images
    return apart, reward_apart


@pytest.mark.parametrize("name", SYMMETRIC)
def test_the_mirror_is_that_of_the_physics(name: str) -> None:
    """With masses that are exact mirror images, all observation groups with their history, rewards and ends
    of the mirrored worlds are those of the mirror, to the rounding of float32."""
    env = make_mirrored(name, exact=True)
    apart, reward_apart = largest_differences(env)
    assert apart < 1e-5
    assert reward_apart < 1e-6
    env.close()


@pytest.mark.parametrize("name", ["g1_velocity", "go1_velocity"])
def test_a_robot_as_it_was_measured_is_nearly_symmetric(name: str) -> None:
    """The trunk of Go1 has its centre of mass 2 mm beside the middle: rewards differ by a few thousandths."""
    env = make_mirrored(name, exact=False)
    apart, reward_apart = largest_differences(env)
    assert 1e-3 < apart < 3.0
    assert reward_apart < 0.01
    env.close()


def test_the_tests_know_every_symmetric_task() -> None:
    assert [name for name in TASKS.names() if TASKS.get(name).is_symmetric] == SYMMETRIC


def test_left_and_right_of_go1_swap_places() -> None:
    """Found by geometry, they are what the names say; only hips turn the other way."""
    model = make_task("go1_velocity").scene().compile()
    mirror = ModelMirror(model)
    names = [model.actuator(i).name for i in range(model.nu)]
    other_side = [name[0] + {"L": "R", "R": "L"}[name[1]] + name[2:] for name in names]
    assert [names[i] for i in mirror.controls.index] == other_side
    assert mirror.controls.sign.tolist() == [-1 if "hip" in name else 1 for name in names]
    assert mirror.sites(("FR", "FL", "RR", "RL")).index.tolist() == [1, 0, 3, 2]


def test_the_legs_of_gymnasiums_humanoid_differ() -> None:
    """So `humanoid` is not declared symmetric: its left hip has another rotor, its left knee a spring."""
    model = make_task("humanoid").scene().compile()
    left, right = (model.joint(f"{side}_hip_y").dofadr[0] for side in ("left", "right"))
    assert model.dof_armature[left] != model.dof_armature[right]
    assert model.joint("left_knee").stiffness[0] != model.joint("right_knee").stiffness[0]


def test_arrows_rotations_and_quaternions_are_mirrored_as_matrices_are() -> None:
    """M v for an arrow, M R M for a rotation, and det(M) M w for what turns."""
    draw = torch.Generator().manual_seed(0)
    plane = torch.diag(torch.tensor((1.0, -1.0, 1.0), dtype=torch.float64))
    for _ in range(5):
        vector = torch.randn(3, dtype=torch.float64, generator=draw)
        torch.testing.assert_close(POLAR(vector), plane @ vector)
        torch.testing.assert_close(AXIAL(vector), -plane @ vector)
        turn = torch.nn.functional.normalize(torch.randn(4, dtype=torch.float64, generator=draw), dim=0)
        matrices = []
        for quaternion in (turn, QUATERNION(turn)):
            mujoco.mju_quat2Mat(flat := np.zeros(9), quaternion.numpy())
            matrices.append(torch.from_numpy(flat).view(3, 3))
        torch.testing.assert_close(matrices[1], plane @ matrices[0] @ plane)


def test_mirrors_are_joined_and_blocks_swap_places() -> None:
    swap = Mirror(torch.tensor([1, 0]), torch.ones(2))
    assert joined((swap, signs(-1)))(torch.tensor([1, 2, 3])).tolist() == [2, 1, -3]
    assert swap.of_blocks(signs(1, -1))(torch.tensor([1, 2, 3, 4])).tolist() == [3, -4, 1, -2]


def test_what_is_no_mirror_is_refused() -> None:
    """A map that does not undo itself, points without partners, and a robot with unequal limits."""
    with pytest.raises(EnvError, match="undo itself"):
        Mirror(torch.tensor([1, 2, 0]), torch.ones(3))
    with pytest.raises(EnvError, match="undo itself"):
        Mirror(torch.tensor([1, 0]), torch.tensor([1.0, -1.0]))
    with pytest.raises(EnvError, match="the feet are not symmetric"):
        paired(np.array([[0.0, 0.1, 0.0], [0.0, -0.2, 0.0]]), "feet")
    spec = make_task("go1_velocity").scene()
    spec.joint("FL_hip_joint").range = (-0.5, 0.9)
    with pytest.raises(EnvError, match=r"range of joint 'F[RL]_hip_joint' is not"):
        ModelMirror(spec.compile())
    with pytest.raises(EnvError, match="its mirror is 2 wide"):
        ObservationTerm("a", 3, lambda state, _: state.qpos, mirror=signs(1, 1))
    with pytest.raises(EnvError, match="not its own mirror image"):
        ObservationTerm("a", 1, lambda state, _: state.qpos, offset=torch.ones(1), mirror=signs(-1))


def test_an_env_says_of_what_it_has_no_mirror() -> None:
    """The error names the task, or the group and the term."""
    env = make_env("cartpole_balance", num_envs=1, device=CPU)
    with pytest.raises(EnvError, match="cartpole_balance declares no mirror"):
        env.mirror(("policy",))
    env.close()
    task = make_task("ant")
    observation = task.observation
    extra = ObservationTerm("extra", 1, lambda state, _: state.qpos[:, :1])
    task.observation = lambda: observation() | {"critic": (extra,)}  # type: ignore[method-assign]
    env = SimEnv("ant", task, lambda model: MujocoPhysics(model, 1, CPU, PhysicsOptions(num_threads=1)), CPU)
    assert env.mirror(("policy",)).groups["policy"].width == 105
    with pytest.raises(
        EnvError, match=r"ant declares no mirror of the group 'critic': term 'extra' has none"
    ):
        env.mirror(("policy", "critic"))
    with pytest.raises(EnvError, match="the group 'pixels': it has none"):
        env.mirror(("pixels",))
    env.close()
