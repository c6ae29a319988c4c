"""Getting up: starts that lie, what touches the ground, and the reward by hand."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.tasks.go1_getup import lying_states

CPU = torch.device("cpu")


def getup_env(num_envs, seed=1, backend="mujoco"):
    return make_env("go1_getup", backend=backend, num_envs=num_envs, device=CPU, seed=seed)


@pytest.fixture(scope="module")
def model():
    return getup_env(1).physics.model


def up_cosine(qpos):
    return 1 - 2 * (qpos[:, 4] ** 2 + qpos[:, 5] ** 2)


def test_lying_states_lie_at_rest(model):
    """Held for another second, they stay where they are; they touch the ground, and none stands."""
    states = lying_states()
    assert len(states) >= 64
    assert states[:, 2].max() < 0.7 * 0.288
    up = up_cosine(states)
    for low, high in ((-1, -0.5), (-0.5, 0.5), (0.5, 1)):  # on the back, on a side, on the belly
        assert ((up >= low) & (up <= high)).mean() > 0.1
    for state in states[::8]:
        data = mujoco.MjData(model)
        data.qpos[:], data.ctrl[:] = state, state[7:]
        mujoco.mj_forward(model, data)
        assert data.ncon >= 3
        assert data.contact.dist.min() > -0.03
        mujoco.mj_step(model, data, 200)
        assert np.linalg.norm(data.qpos[:3] - state[:3]) < 0.05


def test_episodes_start_lying_or_falling():
    env = getup_env(2000)
    qpos = env.physics.state.qpos
    falling = qpos[:, 2] == 0.5
    assert falling.double().mean().item() == pytest.approx(0.2, abs=0.03)
    assert (env.physics.state.qvel[~falling] == 0).all()
    np.testing.assert_allclose(qpos[:, 3:7].norm(dim=-1), 1.0, atol=1e-9)
    # Uniform orientations have uniform cosines (Archimedes), and every heading is as likely.
    up = np.sort(up_cosine(qpos[falling].numpy()))
    assert np.abs(up - np.linspace(-1, 1, len(up))).max() < 0.15
    w, x, y, z = qpos[:, 3:7].T
    heading = torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))[~falling]
    assert torch.histc(heading, 8).min() > 0.6 * len(heading) / 8
    # Turning a lying robot about the vertical leaves its height and its tilt.
    kept = torch.stack((qpos[~falling, 2], torch.tensor(up_cosine(qpos[~falling].numpy()))), -1)
    states = lying_states()
    known = torch.tensor(np.stack((states[:, 2], up_cosine(states)), -1))
    assert torch.cdist(kept, known).amin(-1).max() < 1e-7
    metrics = env.step(torch.zeros(2000, 12)).metrics
    assert metrics["standing"].sum() == 0


def test_trunk_and_legs_touch_the_ground_alone(model):
    ground = model.geom("floor").id
    touching = set()
    for geom in range(model.ngeom):
        collides = model.geom_contype[ground] & model.geom_conaffinity[geom]
        assert model.geom_contype[geom] == 0 or geom == ground
        if collides:
            touching.add(model.body(model.geom_bodyid[geom]).name)
    legs = {f"{leg}_{part}" for leg in ("FR", "FL", "RR", "RL") for part in ("hip", "thigh", "calf")}
    assert touching == {"trunk"} | legs


def test_actions_span_the_joints_ranges(model):
    task = getup_env(1).task
    ends = torch.tensor([[-1.0], [0.0], [1.0]]).expand(3, 12)
    expected = (*model.jnt_range[1:].T[:1], model.key("default").qpos[7:], *model.jnt_range[1:].T[1:])
    np.testing.assert_allclose(task.control(ends), np.stack(expected), atol=1e-6)


def test_nothing_falls_through_the_ground():
    """Robots that throw themselves about sink in for moments only.

    MuJoCo's soft contacts give way to an impact (10 or 50 iterations of the solver give the same), and push
    everything out again. Of seeds 1 to 12, 0.1 % of the states are deeper than 7 to 9 cm, the deepest 12 cm,
    and none stays deeper than 3 cm for more than 5 control steps.
    """
    env = getup_env(16, seed=1)
    generator = torch.Generator().manual_seed(0)
    data, depth_m = mujoco.MjData(env.physics.model), np.zeros((100, 16))
    for step in range(100):
        env.step(2 * torch.rand(16, 12, generator=generator) - 1)
        for world in range(16):
            data.qpos[:] = env.physics.state.qpos[world].numpy()
            mujoco.mj_fwdPosition(env.physics.model, data)
            depth_m[step, world] = -data.contact.dist.min(initial=0.0)
    assert np.quantile(depth_m, 0.999) < 0.1
    assert np.median(depth_m) < 0.01
    assert np.mean(depth_m > 0) > 0.5
    stays_deep = np.lib.stride_tricks.sliding_window_view(depth_m > 0.03, 8, axis=0).all(-1)
    assert not stays_deep.any()


def test_nothing_ends_an_episode_but_the_clock():
    env = getup_env(8)
    generator = torch.Generator().manual_seed(0)
    ends = []
    for _ in range(300):
        result = env.step(2 * torch.rand(8, 12, generator=generator) - 1)
        assert not result.terminated.any()
        ends.append(result.truncated)
    assert torch.stack(ends).nonzero()[:, 0].tolist() == [299] * 8


def placed(env, up, height):
    """Put every world into the default pose at a height, with its vertical axis at a cosine from upright."""
    qpos = torch.tensor(env.physics.model.key("default").qpos).expand(env.num_envs, -1).clone()
    qpos[:, 2] = torch.tensor(height)
    half = torch.tensor(up).arccos() / 2
    qpos[:, 3:7] = torch.stack((half.cos(), half.sin(), half * 0, half * 0), -1)
    env.physics.set_state(torch.ones(env.num_envs, dtype=torch.bool), qpos, torch.zeros(env.num_envs, 18))


def test_measures_and_reward_by_hand():
    env = getup_env(4)
    up, height = [1.0, 1.0, 0.0, -1.0], [0.288, 0.15, 0.288, 0.1]
    placed(env, up, height)
    action = torch.full((4, 12), 0.1)
    outcome = env.task.outcome(env.physics.state, env._episode(), action)
    assert outcome.measures["upright"].tolist() == [True, True, False, False]
    assert not outcome.measures["standing"].any()  # the feet of the default pose are just above the ground
    upright = 0.5 + 0.5 * np.array(up)
    high = upright**2 * np.array(height) / 0.288
    expected = {"upright": 2 * upright, "height": 2 * high, "pose": 2 * high, "still": 0.5 * high}
    expected["action_rate"] = np.full(4, -0.01 * 12 * 0.01)
    for name, value in expected.items():
        np.testing.assert_allclose(outcome.reward[name], 0.02 * value, atol=1e-7)
    assert not outcome.terminated.any()


def test_standing_pays_more_than_every_way_of_lying():
    """The sum that a whole step earns: standing still in the default pose, against each lying state."""
    env = getup_env(len(lying_states()))
    everyone = torch.ones(env.num_envs, dtype=torch.bool)
    env.place(everyone, torch.tensor(lying_states()), torch.zeros(env.num_envs, 18))
    lying = env.step(torch.zeros(env.num_envs, 12)).reward
    standing = getup_env(1)
    placed(standing, [1.0], [0.288])
    for _ in range(10):
        result = standing.step(torch.zeros(1, 12))
    reward = result.reward
    assert result.metrics["standing"].all()
    assert reward > 0.02 * 4.4
    assert (lying < 0.75 * reward).all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["warp", "mjx"])
def test_stays_finite_and_finds_room(backend):
    env = getup_env(4, backend=backend)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        result = env.step(2 * torch.rand(4, 12, generator=generator) - 1)
        assert result.reward.isfinite().all()
    assert env.pop_metrics()["physics/broken"] == 0
    assert not env.physics.overflow().any()
