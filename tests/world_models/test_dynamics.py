"""The learned model: it fits real steps, and its predictions continue from predictions."""

import pytest
import torch

from envs_gpu.imagination import PHYSICS
from envs_gpu.make import make_env
from pi_incubator.world_models.dynamics import Dynamics, Window

CPU = torch.device("cpu")
N, T = 8, 6


@pytest.fixture(scope="module")
def steps():
    """The env, its imagination, and T steps of N cartpoles as windows `[T, N, ...]`."""
    env = make_env("cartpole_swingup", backend="mujoco", num_envs=N, device=CPU, seed=0)
    imagination, random = env.imagination(), torch.Generator().manual_seed(0)
    rows, actions = [env.obs[PHYSICS].clone()], []
    for _ in range(T):
        actions.append(2.0 * torch.rand(N, 1, generator=random) - 1.0)
        rows.append(env.step(actions[-1]).obs[PHYSICS].clone())
    qpos, qvel = (torch.stack([imagination.unpack(row)[which] for row in rows]) for which in (0, 1))
    start, valid = torch.zeros(T, N, dtype=torch.bool), torch.ones(T, N, dtype=torch.bool)
    windows = Window((qpos[:-1], qvel[:-1]), (qpos[1:], qvel[1:]), torch.stack(actions), start, valid)
    yield imagination, windows
    env.close()


def make_dynamics(steps):
    torch.manual_seed(0)
    imagination, windows = steps
    dynamics = Dynamics(imagination.motion, 1, [32], num_models=2)
    for t in range(T):
        step = windows.at(t)
        dynamics.observe(step.before, step.after, step.valid)
    dynamics.commit(lambda moments: moments)
    return dynamics


def test_it_fits_real_steps(steps):
    """The error over windows falls to a small part of the change in a step."""
    dynamics = make_dynamics(steps)
    optimizer = torch.optim.Adam(dynamics.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        loss = dynamics.window_loss(steps[1], dynamics.window_step)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]


def test_each_network_learns_from_its_own_windows(steps):
    """The first half of the windows has no gradient in the second network, and the other way round."""
    dynamics = make_dynamics(steps)
    for which in range(2):
        valid = torch.zeros(T, N, dtype=torch.bool)
        valid[:, which * N // 2 : (which + 1) * N // 2] = True
        loss = dynamics.window_loss(steps[1]._replace(valid=valid), dynamics.window_step)
        (gradient,) = torch.autograd.grad(loss, [dynamics.output.weight])
        assert gradient[which].any()
        assert not gradient[1 - which].any()


def test_the_loss_is_that_of_predictions_from_predictions(steps):
    """Computed step by step here; a prediction starts again where an episode does."""
    dynamics, windows = make_dynamics(steps), steps[1]
    start = torch.zeros(T, N, dtype=torch.bool)
    start[3, 0] = True
    expected, now = [], windows.at(0).before
    for t in range(T):
        step = windows.at(t)
        if t == 3:
            now = tuple(
                torch.cat((real[:1], predicted[1:])) for real, predicted in zip(step.before, now, strict=True)
            )
        now = dynamics(*now, step.action)
        expected.append(dynamics.error(now, step.after))
    loss = dynamics.window_loss(windows._replace(start=start), dynamics.window_step)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_nothing_counts_behind_a_broken_step(steps):
    """Until an episode starts: neither the step nor what was predicted from it."""
    dynamics, windows = make_dynamics(steps), steps[1]
    valid, start = torch.ones(T, N, dtype=torch.bool), torch.zeros(T, N, dtype=torch.bool)
    valid[2, 0], start[4, 0] = False, True
    spoiled = windows.after[0].clone()
    spoiled[2:4, 0] = 1e6
    broken = windows._replace(valid=valid, start=start, after=(spoiled, windows.after[1]))
    clean = windows._replace(valid=valid, start=start)
    loss = dynamics.window_loss(broken, dynamics.window_step)
    torch.testing.assert_close(loss, dynamics.window_loss(clean, dynamics.window_step))
