"""Tasks that need a memory: what they show and what they do not, and their twins, which show it always."""

import pytest
import torch

from envs_gpu.make import make_env

CPU = torch.device("cpu")
NUM_WORLDS, CUE_STEPS = 8, 50


def walk(task, push):
    """Observations of one episode of every world, `[T, N, 2]`, its cues, and the last results."""
    env = make_env(task, num_envs=NUM_WORLDS, device=CPU, seed=3)
    cue = env.obs["policy"][:, 0].clone()
    seen = [env.obs["policy"].clone()]
    while True:
        result = env.step(push(cue, len(seen))[:, None])
        if (result.terminated | result.truncated).any():
            env.close()
            return torch.stack(seen), cue, result
        seen.append(result.obs["policy"].clone())


def later(cue, step):
    """Pushes into the arm of the cue, from just before the ball leaves the corridor on."""
    return cue if step > CUE_STEPS else torch.zeros_like(cue)


@pytest.mark.parametrize("task", ["t_maze", "t_maze_observed"])
def test_who_goes_into_the_arm_of_the_cue_succeeds(task):
    _, cue, result = walk(task, later)
    assert set(cue.tolist()) == {-1.0, 1.0}
    assert torch.equal(result.reward, result.terminated.float())
    _, _, result = walk(task, lambda cue, step: -later(cue, step))
    assert result.terminated.any()
    assert torch.equal(result.reward, -result.terminated.float())


def test_the_cue_is_seen_at_the_first_step_alone_and_is_needed_50_steps_later():
    """Until then the walls hold the ball, whatever pushes it."""
    seen, cue, _ = walk("t_maze", lambda cue, step: cue)
    assert cue.abs().eq(1.0).all()
    assert (seen[1:, :, 0] == 0).all()
    held, _, _ = walk("t_maze", lambda cue, step: cue if step <= CUE_STEPS else torch.zeros_like(cue))
    assert len(held) == 150, "a push in the corridor alone brought a ball into an arm"


def test_the_twin_shows_the_cue_always():
    seen, cue, _ = walk("t_maze_observed", later)
    assert (seen[..., 0] == cue).all()


def test_an_early_push_is_forgotten_by_the_ball():
    """A policy without a memory cannot write the cue into what it observes later: the way does not differ."""
    pushed, _, _ = walk("t_maze", lambda cue, step: cue if step == 1 else torch.zeros_like(cue))
    still, _, _ = walk("t_maze", lambda cue, step: torch.zeros_like(cue))
    torch.testing.assert_close(pushed[..., 1], still[..., 1], rtol=0, atol=1e-5)


def test_positions_are_those_of_the_cartpole_whose_velocities_are_seen():
    masked, full = (
        make_env(task, num_envs=2, device=CPU, seed=1)
        for task in ("cartpole_balance_positions", "cartpole_balance")
    )
    for step in range(20):
        assert torch.equal(masked.obs["policy"], full.obs["policy"][:, :3]), step
        action = torch.full((2, 1), 0.1 * (-1) ** step)
        assert torch.equal(masked.step(action).reward, full.step(action).reward)
    masked.close()
    full.close()
